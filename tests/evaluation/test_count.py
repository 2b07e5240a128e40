"""Copies by hand, and in which order they stand."""

import numpy as np

from grace_moe.evaluation import evaluate

from .cases import placement_of, topology_of, trace_of


def test_two_experts_on_one_device_are_two_pairs_and_one_copy():
    """2x1, experts 0 and 1 on device 1: token 0 (source 0) sends one copy, and would send two pairs."""
    got = evaluate(placement_of(topology_of([1, 1]), [[1], [1]]), trace_of([[[0, 1]]], 2))
    assert (got.cross_node_copies, got.flat_copies, got.pair_copies, got.intra_node_copies) == (1, 1, 2, 0)


def test_replicas_keep_a_token_at_home():
    """Expert 0 on devices 0 and 2 (one a node): under TAR nothing crosses, and sources 1 and 3 hand over inside their nodes."""
    placement = placement_of(topology_of([2, 2]), [[0, 2]])
    got = evaluate(placement, trace_of([[[0]]] * 4, 1))
    assert (got.cross_node_copies, got.intra_node_copies, got.pair_copies) == (0, 0.5, 0.5)
    assert got.device_load.tolist() == [[2, 0, 2, 0]]
    assert (got.slots_total_over_experts, got.slots_max_per_device) == (2.0, 1)


def test_the_ingress_is_the_rail_peer_and_wraps_on_smaller_nodes():
    """Nodes of 3 and 2 devices. Source 2 (third of its node) enters the other node at device 3 + 2 % 2 = 3, so expert 0 on 4 is one more copy."""
    placement = placement_of(topology_of([3, 2]), [[4], [3]])
    requests = np.array([0, 1, 2], np.int32)
    got = evaluate(placement, trace_of([[[-1]], [[-1]], [[0]]], 2, request_ids=requests))
    assert (got.copies.cross_node.tolist(), got.copies.intra_node.tolist()) == ([1], [1])
    got = evaluate(placement, trace_of([[[-1]], [[-1]], [[1]]], 2, request_ids=requests))
    assert (got.copies.cross_node.tolist(), got.copies.intra_node.tolist()) == ([1], [0])
