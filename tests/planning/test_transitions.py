import numpy as np

from grace_moe.planning.groups.transitions import hop_costs, link_costs, transitions
from grace_moe.topology import Topology


def test_transitions_by_hand():
    """Token 0: {0, 1} -> {2, 0}; token 1: {1} -> {2}."""
    before, after = np.array([[0, 1], [1, -1]]), np.array([[2, 0], [-1, 2]])
    assert transitions(before, after, 3).tolist() == [[1, 0, 1], [1, 0, 2], [0, 0, 0]]


def test_costs_of_a_step():
    assert hop_costs(Topology.parse("2x2")).tolist() == [[0, 1, 2, 2], [1, 0, 2, 2], [2, 2, 0, 1], [2, 2, 1, 0]]
    fast, slow = 1 / 300e9, 1 / 3.125e9
    assert link_costs(Topology.parse("1x2")).tolist() == [[0, fast], [fast, 0]]
    assert link_costs(Topology.parse("2x1")).tolist() == [[0, slow], [slow, 0]]
    irregular = Topology.from_dict({"nodes": [{"devices": [{}, {}]}], "bandwidth": [[1, 2], [4, 1]]})
    assert link_costs(irregular).tolist() == [[0, 0.5], [0.25, 0]]
