"""What a command says: JSON, or lines in which no control character of a file reaches the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import click

from grace_moe.errors import printable


def show_json(facts: Mapping[str, Any]) -> None:
    """Print JSON, indented; it holds ASCII only."""
    click.echo(json.dumps(facts, indent=2))


def say(text: str, notes: Iterable[str] = ()) -> None:
    """Print a text, and what else is to be noted, a line each."""
    click.echo(printable(text))
    for note in notes:
        click.echo(f"note: {printable(note)}")
