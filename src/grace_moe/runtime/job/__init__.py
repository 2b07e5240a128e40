"""A run on several ranks: launch, ranks, generation, recording."""
