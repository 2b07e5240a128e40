"""Experts that move while the model serves (docs/adapt.md#while-a-model-serves): watched, decided on one rank, moved between steps."""
