"""What every exporter gives back."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file for an engine, and how to start the engine with it."""

    data: bytes
    launch: str
    """The exact flags, environment or configuration, with PLAN for the file's path and MODEL for the model's."""
    notes: tuple[str, ...] = ()
    """What the user should know."""
