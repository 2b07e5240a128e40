"""A run on several ranks: launch, ranks, generation, recording."""

TIMEOUT_SECONDS = 45.0
"""How long a rank waits for another in one collective, or for all to join, where nothing else is said."""
