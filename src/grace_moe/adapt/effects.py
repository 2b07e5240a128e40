"""What decisions to move were to save, and what that came to: of an adapter's looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grace_moe.adapt.episodes import Look


@dataclass(frozen=True, kw_only=True)
class Effects:
    """Copies per token, mean over layers."""

    expected: float = 0.0
    """Of all moves since the change that was decided on last; 0 before the first."""
    measured: float | None = None
    """What the same moves save, on requests that came in after them; None = not known yet."""
    useless: int = 0
    """Decisions to move after which the moves since the change saved nothing, as measured last."""


def effects_of(looks: Sequence[Look]) -> Effects:
    """Of the decisions so far."""
    moves = [look for look in looks if look.decision.placement is not None]
    if not moves:
        return Effects()
    useless = sum(look.measured is not None and look.measured <= 0 for look in moves)
    return Effects(expected=moves[-1].expected, measured=moves[-1].measured, useless=useless)
