"""Groups of experts, and what pulls experts together."""
