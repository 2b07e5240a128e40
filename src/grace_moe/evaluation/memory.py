"""One method under several memory budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from grace_moe.evaluation.compare import Comparison, ComparisonRow, timed_plan
from grace_moe.evaluation.replay import evaluate
from grace_moe.planning import DEFAULT_METHOD, equal_slots


def over_memory(
    comparison: Comparison,
    redundancies: Sequence[float],
    *,
    method: str = DEFAULT_METHOD,
    expert_bytes: int | None = None,
    seed: int = 0,
    on_budget: Callable[[float], None] = lambda _: None,
) -> tuple[ComparisonRow, ...]:
    """Plan and measure one method with each redundancy, on the comparison's requests; redundancies of the same slots are one row.

    Args:
        redundancies: slots in all over experts; those of as many slots as a row of the comparison take that row.
        expert_bytes, seed: the comparison's own.
        on_budget: told each redundancy when it is planned and measured.

    Returns:
        The rows by ascending memory, the method's own row of the comparison among them.

    Raises:
        UsageError: a redundancy out of range.
    """
    trace, topology = comparison.planned_on, comparison.topology
    rows = {int(row.placement.slots_per_device().max()): row for row in comparison.rows if row.method == method}
    for redundancy in redundancies:
        slots = equal_slots(trace, topology, redundancy=redundancy, expert_bytes=expert_bytes)
        if slots not in rows:
            placement, seconds = timed_plan(trace, topology, method, seed=seed, redundancy=redundancy, expert_bytes=expert_bytes)
            evaluation = evaluate(placement, comparison.measured_on, seed=seed)
            rows[slots] = ComparisonRow(method=method, plan_seconds=seconds, placement=placement, evaluation=evaluation)
        on_budget(redundancy)
    return tuple(sorted(rows.values(), key=lambda row: row.evaluation.slots_total_over_experts))
