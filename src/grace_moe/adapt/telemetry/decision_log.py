"""Decisions and the state of adaptation as text: one JSON line a decision, and one line that a person reads."""

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


def status_line(status: AdaptStatus) -> str:
    """Such as `step 120: watching; plan of 15 steps; 3 decisions, 1 to stay; 1 migration, 0 rolled back; 12 copies moved`."""
    alive = "" if status.alive else " NOT ALIVE;"
    last = f"; last: {status.last_reason}" if status.last_reason else ""
    error = f"; last error: {status.last_error}" if status.last_error else ""
    return (
        f"step {status.steps}: {status.state};{alive} plan of {status.plan_age_steps} steps; {status.decisions} decisions, "
        f"{status.skipped} to stay; {status.migrations} migrations, {status.rolled_back} rolled back; "
        f"{status.copies_moved} copies moved{last}{error}"
    )
