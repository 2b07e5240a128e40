"""What a copy, a pair and a wait cost."""
