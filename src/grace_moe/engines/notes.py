"""Words that the notes of importers and exporters share."""

from __future__ import annotations


def several(number: int, noun: str) -> str:
    """`1 slot`, `2 slots`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
