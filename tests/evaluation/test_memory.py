"""One method under several memory budgets."""

from grace_moe.evaluation import compare, over_memory
from grace_moe.topology import Topology
from grace_moe.trace import synthetic_trace


def test_memory_budgets_are_one_row_each_and_share_the_comparisons():
    """16 experts on 4 devices: 1.2, 1.24 and 1.25 are all five slots, which the comparison has."""
    trace = synthetic_trace(tokens=240, layers=1, experts=16, top_k=4)
    comparison = compare(trace, Topology.parse("2x2"), methods=("eplb", "linear"))
    rows = over_memory(comparison, (1.0, 1.5), method="eplb")
    held = [row.evaluation.slots_total_over_experts for row in rows]
    assert held == [1.0, 1.25, 1.5]
    assert rows[1] is comparison.rows[0]
    assert over_memory(comparison, (1.2, 1.25, 1.24), method="eplb") == (comparison.rows[0],)
