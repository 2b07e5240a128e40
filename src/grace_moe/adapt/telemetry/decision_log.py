"""Decisions, their effects and the state of adaptation as text: JSON lines, and one line that a person reads."""

from __future__ import annotations

import json

from grace_moe.adapt.episodes import Look
from grace_moe.adapt.status import AdaptStatus


def decision_line(look: Look) -> str:
    """A JSON object: what was seen, decided and expected, and why. Copies are per token, mean over layers."""
    decision, change = look.decision, look.change
    return json.dumps(
        {
            "event": "decision",
            "step": look.step,
            "moves": decision.placement is not None,
            "reason": decision.reason,
            "copies_to_load": decision.moved,
            "from_other_nodes": decision.from_other_nodes,
            "gain": round(decision.gain.mean, 6),
            "gain_at_least": round(decision.gain.low, 6),
            "gain_left": round(decision.gain_left, 6),
            "cost": round(decision.cost, 6),
            "predicted_balance": round(decision.balance, 6),
            "layers_considered": len(decision.considered),
            "chance_of_no_change": change.chance,
            change.unit: list(change.compared),
        }
    )


def effect_line(look: Look, step: int) -> str:
    """A JSON object: at this step, what the moves since the change save, beside what decisions up to this one expected of them.

    `next_change_waits`: steps until a decision, the more, the more decisions did harm.
    """
    return json.dumps(
        {
            "event": "effect",
            "step": step,
            "decided_at": look.step,
            "expected": round(look.expected, 6),
            "measured": None if look.measured is None else round(look.measured, 6),
            "next_change_waits": look.waits,
        }
    )


def status_line(status: AdaptStatus) -> str:
    """Such as `step 120: watching; plan of 15 steps; 3 decisions, 1 to stay; 1 migrations, 0 rolled back; 12 copies moved; moves save 0.025
    copies per token, 0.031 expected; 0 useless`."""
    alive = "" if status.alive else " NOT ALIVE;"
    effect = f"; {status.effect}" if status.effect else ""
    last = f"; last: {status.last_reason}" if status.last_reason else ""
    error = f"; last error: {status.last_error}" if status.last_error else ""
    behind = "" if status.seen_steps == status.steps else f" ({status.seen_steps} of them seen)"
    return (
        f"step {status.steps}{behind}: {status.state};{alive} plan of {status.plan_age_steps} steps; {status.decisions} decisions, "
        f"{status.skipped} to stay; {status.migrations} migrations, {status.rolled_back} rolled back; "
        f"{status.copies_moved} copies moved{effect}{last}{error}"
    )
