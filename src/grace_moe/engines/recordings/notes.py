"""Words that the notes of importers and exporters share."""

from __future__ import annotations


def several(number: int, noun: str) -> str:
    """`1 slot`, `2 slots`, `1,200 slots`."""
    ending = "" if number == 1 else "es" if noun.endswith(("x", "s")) else "s"
    return f"{number:,} {noun}{ending}"


def counted(number: int, one: str, more: str) -> str:
    """The word for one, or for several."""
    return one if number == 1 else more
