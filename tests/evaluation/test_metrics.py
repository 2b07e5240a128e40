"""Metrics by hand."""

import numpy as np
import pytest

from grace_moe.cost.layer_time import modelled_layer_time
from grace_moe.evaluation import METRICS, evaluate

from .cases import placement_of, topology_of, trace_of


def test_copies_by_hand():
    """2x2, expert e on device e, k = 2; tokens 0..3 are dealt to devices 0..3.

    token (source) -> experts: nodes beyond its own, copies inside, devices, those on other nodes, pairs
    0 (0) -> 0, 1:   0, 1 (0>1), 1, 0, 1
    1 (1) -> 2, 3:   1, 1 (enters at 3, 3>2), 2, 2, 2
    2 (2) -> 0, 3:   1, 1 (enters at 0, 2>3), 2, 1, 2
    3 (3) -> -1, 1:  1, 0 (enters at 1), 1, 1, 1
    """
    got = evaluate(placement_of(topology_of([2, 2]), [[0], [1], [2], [3]]), trace_of([[[0, 1]], [[2, 3]], [[0, 3]], [[-1, 1]]], 4))
    assert [got.copies.cross_node.tolist(), got.copies.intra_node.tolist(), got.copies.flat.tolist()] == [[3], [3], [6]]
    assert [got.copies.flat_cross_node.tolist(), got.copies.pairs.tolist(), got.copies.pairs_cross_node.tolist()] == [[4], [6], [4]]
    assert (got.cross_node_copies, got.intra_node_copies, got.flat_copies) == (3 / 4, 3 / 4, 6 / 4)
    assert got.device_load.tolist() == [[2, 2, 1, 2]]
    assert got.load_max_over_mean == 2 / 1.75
    assert got.load_std_over_mean == pytest.approx((3 * 0.25**2 + 0.75**2) ** 0.5 / 2 / 1.75)
    assert got.idle_fraction == 1 - 1.75 / 2
    assert got.active_experts_max is None
    assert (got.slots_total_over_experts, got.slots_max_per_device) == (1.0, 1)
    # Which links carry them. Across: 1 to node 1, 2 and 3 to node 0. Inside: 0 and 2 to local rank 1, 3 to local rank 0.
    assert [links.toarray().tolist() for links in got.cross_node_links] == [[[0, 0], [0, 1], [1, 0], [1, 0]]]
    assert [links.toarray().tolist() for links in got.intra_node_links] == [[[0, 1], [0, 0], [0, 1], [1, 0]]]


def test_load_is_over_relative_speed():
    """A device of speed 2 with four pairs is as busy as one of speed 1 with two."""
    got = evaluate(placement_of(topology_of([2], [2.0, 1.0]), [[0], [1]]), trace_of([[[0]]] * 4 + [[[1]]] * 2, 2))
    assert got.device_load.tolist() == [[2.0, 2.0]]
    assert (got.load_max_over_mean, got.idle_fraction) == (1.0, 0.0)


def test_active_experts_by_hand():
    """1x2, experts 0, 1, 2 on device 0, expert 3 on device 1; two requests decode two steps.

    Step 0: {0, 1} and {0, 2}: device 0 computes three distinct experts. Step 1: {3, 0} and {3, 1}: device 0 two, device 1 one.
    """
    ids = [[[0, 1]], [[0, 2]], [[3, 0]], [[3, 1]]]
    trace = trace_of(ids, 4, request_ids=np.array([0, 1, 0, 1], np.int32), phase=np.ones(4, np.uint8))
    assert evaluate(placement_of(topology_of([2]), [[0], [0], [0], [1]]), trace).active_experts_max == 2.5


def test_numbers_are_means_over_layers():
    """Two layers, one token on device 0: layer 0 sends it to the other node, layer 1 keeps it."""
    placement = placement_of(topology_of([1, 1]), [[1]], [[0]])
    got = evaluate(placement, trace_of([[[0], [0]]], 1))
    assert got.copies.cross_node.tolist() == [1, 0]
    assert got.cross_node_copies == 0.5


def test_equal_loads_are_never_less_than_even():
    """The mean of equal floats may round to more than each of them."""
    got = evaluate(placement_of(topology_of([3], [2.5] * 3), [[0], [1], [2]]), trace_of([[[0, 1, 2]]], 3))
    assert got.idle_fraction == 0


def test_an_empty_trace_costs_nothing():
    got = evaluate(placement_of(topology_of([2, 2]), [[0], [1]]), trace_of(np.empty((0, 1, 2)), 2))
    numbers = got.to_dict()
    assert tuple(numbers) == METRICS
    assert {name for name, value in numbers.items() if value not in (0, None)} == {"slots_total_over_experts", "slots_max_per_device"}


def test_what_was_not_recorded_is_left_out():
    """Layer 1 has no pair, and token 1 no choice: the numbers are those of layer 0 and the other two tokens."""
    topology = topology_of([1, 1])
    layer = [[0], [1]]
    whole = evaluate(placement_of(topology, layer), trace_of([[[1]], [[1]]], 2, request_ids=np.array([0, 1], np.int32)))
    requests, ids = np.array([0, 0, 1], np.int32), [[[1], [-1]], [[-1], [-1]], [[1], [-1]]]
    partly = evaluate(placement_of(topology, layer, layer), trace_of(ids, 2, request_ids=requests))
    assert partly.recorded.tolist() == [True, False]
    assert partly.num_tokens == 2
    assert partly.to_dict() == whole.to_dict()
    assert (whole.cross_node_copies, whole.load_max_over_mean) == (0.5, 2)
    assert modelled_layer_time(partly, topology) == modelled_layer_time(whole, topology)


def test_decode_steps_without_a_pair_are_left_out():
    """One device of two experts: step 0 uses both, step 1 was not recorded."""
    trace = trace_of([[[0, 1]], [[-1, -1]]], 2, request_ids=np.zeros(2, np.int32), phase=np.ones(2, np.uint8))
    assert evaluate(placement_of(topology_of([1]), [[0], [0]]), trace).active_experts_max == 2
