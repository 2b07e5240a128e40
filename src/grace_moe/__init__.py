"""GRACE-MoE."""
