"""The frontier of traffic against balance against memory: what there is to choose from, for one trace and topology."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from grace_moe.errors import UsageError
from grace_moe.evaluation.replay import Evaluation, check_same_model, evaluate
from grace_moe.planning import plan
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace

PRICES = (0.5, 2.0, 8.0, 32.0)
"""Prices on imbalance that are tried: from hardly any to nearly EPLB's balance."""
REDUNDANCIES = (1.0, 1.125, 1.25, 1.5)
_ANY = 1e6
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
    on_point: Callable[[], None] = lambda: None,
) -> tuple[ParetoPoint, ...]:
    """Plan with `grace` at every price and redundancy, each with EPLB's balance left aside; measured on other requests.

    Args:
        measure_on: None = the trace's second half of requests; then only the first half is planned on.
        on_point: told when a point is planned and measured.

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
    found: dict[tuple[float, float], tuple[float, Evaluation]] = {}
    for redundancy in sorted(redundancies):
        for price in sorted(prices):
            placement = plan(planned_on, topology, redundancy=redundancy, price=price, tolerance=_ANY, seed=seed)
            evaluation = evaluate(placement, measured_on, seed=seed)
            found.setdefault((evaluation.slots_total_over_experts, price), (redundancy, evaluation))
            on_point()
    points = [
        ParetoPoint(price=price, redundancy=redundancy, evaluation=evaluation, best=False)
        for (_, price), (redundancy, evaluation) in found.items()
    ]
    marked = [
        ParetoPoint(price=p.price, redundancy=p.redundancy, evaluation=p.evaluation, best=not any(_beats(q, p) for q in points))
        for p in points
    ]
    return tuple(sorted(marked, key=lambda point: (point.costs[2], point.costs[0])))


def _beats(one: ParetoPoint, other: ParetoPoint) -> bool:
    return one.costs != other.costs and all(a <= b for a, b in zip(one.costs, other.costs, strict=True))
