"""The frontier of traffic against balance against memory: what there is to choose from, for one trace and topology."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from grace_moe.errors import UsageError
from grace_moe.evaluation.metrics import Evaluation
from grace_moe.evaluation.replay import evaluate
from grace_moe.placement import check_same_model
from grace_moe.planning import equal_slots, plan
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace

PRICES = (0.5, 2.0, 8.0, 32.0)
"""Prices on imbalance that are tried: from hardly any to nearly EPLB's balance."""
REDUNDANCIES = (1.0, 1.125, 1.25, 1.5)
ANY_BALANCE = 1e6
"""A tolerance that leaves EPLB out of it."""


@dataclass(frozen=True, kw_only=True)
class ParetoPoint:
    """One plan of `grace`."""

    price: float
    redundancy: float
    evaluation: Evaluation
    best: bool
    """Whether no other point has as little traffic, imbalance and memory, and less of one."""

    @property
    def costs(self) -> tuple[float, float, float]:
        """Copies between nodes, busiest device over the mean, slots over experts."""
        return (self.evaluation.cross_node_copies, self.evaluation.load_max_over_mean, self.evaluation.slots_total_over_experts)


def pareto(
    trace: RoutingTrace,
    topology: Topology,
    *,
    measure_on: RoutingTrace | None = None,
    prices: Sequence[float] = PRICES,
    redundancies: Sequence[float] = REDUNDANCIES,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[ParetoPoint, ...]:
    """Plan with `grace` at every price and redundancy, each with EPLB's balance left aside; measured on other requests.

    Args:
        measure_on: None = the trace's second half of requests; then only the first half is planned on.
        progress: called with (plans done, plans in all).

    Returns:
        By memory, then traffic. Redundancies that round to the same slots give the same points, once.

    Raises:
        MismatchError: the traces are of different models.
        UsageError: no price or redundancy, or one out of range.
    """
    if not prices or not redundancies:
        raise UsageError("no prices or no redundancies to try; give at least one of each")
    planned_on, measured_on = (trace, measure_on) if measure_on is not None else trace.split_requests()
    check_same_model(planned_on, measured_on)
    budgets: dict[int, float] = {}
    for redundancy in sorted(redundancies):
        budgets.setdefault(equal_slots(planned_on, topology, redundancy=redundancy), redundancy)
    tries = [(redundancy, price) for redundancy in budgets.values() for price in sorted(prices)]
    points = []
    for redundancy, price in tries:
        placement = plan(planned_on, topology, redundancy=redundancy, price=price, tolerance=ANY_BALANCE, seed=seed)
        points.append(ParetoPoint(price=price, redundancy=redundancy, evaluation=evaluate(placement, measured_on, seed=seed), best=False))
        if progress is not None:
            progress(len(points), len(tries))
    marked = [replace(point, best=not any(_beats(other, point) for other in points)) for point in points]
    return tuple(sorted(marked, key=lambda point: (point.costs[2], point.costs[0])))


def _beats(one: ParetoPoint, other: ParetoPoint) -> bool:
    return one.costs != other.costs and all(a <= b for a, b in zip(one.costs, other.costs, strict=True))
