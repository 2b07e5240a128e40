"""Where requests are unknown, nothing tells how tokens depend on one another: plans pay more for balance, and leave it more."""

from dataclasses import replace

import pytest

from grace_moe.evaluation import evaluate
from grace_moe.planning import plan
from grace_moe.planning.grace.grace import BY_LOAD
from grace_moe.topology import Topology
from grace_moe.trace import synthetic_trace

TOPOLOGY = Topology.parse("2x2")


def both_plans(tokens, affinity, tolerance):
    """The trace, its plan, and the plan of the same tokens without their requests."""
    trace = synthetic_trace(tokens=tokens, layers=1, experts=16, top_k=3, clusters=4, affinity=affinity, requests=40, seed=1)
    unknown = replace(trace, request_ids=None)
    return trace, *(plan(t, TOPOLOGY, effort=0.05, tolerance=tolerance) for t in (trace, unknown))


@pytest.mark.parametrize("affinity", [0.6, 0.9])
def test_a_tolerance_that_is_met_with_requests_is_in_doubt_without(affinity):
    """Of few tokens, the balance of a layout of our own is too uncertain: the layer takes EPLB's devices."""
    _, known, unknown = both_plans(800, affinity, tolerance=1.03)
    assert known.provenance["notes"] == []
    assert unknown.provenance["notes"] == [f"layer 0: {BY_LOAD}"]


def test_imbalance_costs_more_copies_without_requests():
    """Whatever the tolerance: the price is higher, so that more copies are worth it."""
    trace, known, unknown = both_plans(2000, 0.9, tolerance=10)
    assert known.provenance["notes"] == unknown.provenance["notes"] == []
    assert evaluate(unknown, trace).cross_node_copies > 1.15 * evaluate(known, trace).cross_node_copies
