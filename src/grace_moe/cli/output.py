"""What a command says: JSON, or lines in which no control character of a file reaches the terminal."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import click

_TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the direction of what follows them, so that a line reads as another."""


def printable(text: str) -> str:
    """The text with `?` for control characters, lone surrogates and turns of direction; new lines and tabs stay.

    >>> printable("a\\x1b[2Jb")
    'a?[2Jb'
    """
    return "".join(c if c in "\n\t" or not (unicodedata.category(c) in ("Cc", "Cs") or c in _TURNS) else "?" for c in text)


def show_json(facts: Mapping[str, Any]) -> None:
    """Print JSON, indented; it holds ASCII only."""
    click.echo(json.dumps(facts, indent=2))


def say(text: str, notes: Iterable[str] = ()) -> None:
    """Print a text, and what else is to be noted, a line each."""
    click.echo(printable(text))
    for note in notes:
        click.echo(f"note: {printable(note)}")
