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
    seen_steps: int
    """That what decides has taken in: beside steps that are quick, or while it starts, it lags behind."""
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
    """Copies per token, mean over layers, that the decisions since the last change expected to save; 0 before the first."""
    measured_gain: float | None
    """What the moves since the last change save, on requests that came in after them; None = not measured yet, or not on this rank."""
    useless: int
    """Decisions to move after which the moves since the change saved nothing, as measured last; 0 on ranks other than the first."""
    last_reason: str
    """Of the last decision, in words; empty before the first."""
    last_error: str
    """What ended the last migration that was rolled back, and which rank; else, on the first rank, why no log is written; or empty."""

    @property
    def effect(self) -> str:
        """What moves were to save and do save, in words; empty before the first decision to move."""
        if self.decisions == self.skipped:
            return ""
        expected = f"{self.expected_gain:.3f}"
        if self.measured_gain is None:
            return f"moves are to save {expected} copies per token, not measured yet; {self.useless} useless"
        return f"moves save {self.measured_gain:.3f} copies per token, {expected} expected; {self.useless} useless"
