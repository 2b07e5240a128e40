"""How adaptation goes: what an operator asks of whatever moves experts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AdaptStatus:
    """Counts are since the start, over all ranks."""

    state: str
    """`watching`, `moving` (a migration is under way) or `stopped`."""
    alive: bool
    """Whether what decides and what moves still run, on every rank."""
    steps: int
    plan_age_steps: int
    """Steps since a layer last switched, or since the start."""
    plan_since: float
    """Unix seconds of that moment."""
    decisions: int
    """To move or to stay."""
    skipped: int
    """Decisions to stay: a change was seen, and moving would not pay."""
    migrations: int
    """That every layer came through."""
    rolled_back: int
    """Migrations that ended before all layers had switched; those that had not serve as before."""
    layers_switched: int
    copies_moved: int
    """Expert copies that arrived whole and serve."""
    bytes_moved: int
    expected_gain: float
    """Copies per token, mean over layers, that the decision which serves expected to save; 0 before the first."""
    last_reason: str
    """Of the last decision, in words; empty before the first."""
    last_error: str
    """What ended the last migration that was rolled back, and which rank; empty where none was."""
