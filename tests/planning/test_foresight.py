"""What the planner foresees: visited nodes, demand, loads of requests, the busiest device of days to come."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_moe.choice import joint_choice_table
from grace_moe.choice.cover import visited_nodes
from grace_moe.choice.joint import host_masks
from grace_moe.placement import LayerPlacement, even_weights
from grace_moe.planning import plan
from grace_moe.planning.constants import DAYS
from grace_moe.planning.grace.foresight import peaks_of_days, unit_loads
from grace_moe.planning.grace.independent_units import independent_units, stream_distance
from grace_moe.planning.grace.predicted_choice import PredictedChoice
from grace_moe.planning.grace.split import demand
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace

TWO = Topology.parse("2x1")


def table_of(devices, topology, prices=()):
    layer = LayerPlacement(layer_id=3, devices_of_expert=devices, replica_weights=even_weights(devices), node_prices=prices)
    return joint_choice_table(layer, topology)


@settings(max_examples=60)
@given(nodes=st.sampled_from([1, 2, 3, 5, 9, 17, 64]), experts=st.integers(1, 8), seed=st.integers(0, 2**31))
def test_visits_are_those_of_the_replica_choice(nodes, experts, seed):
    generator = np.random.default_rng(seed)
    topology = Topology.regular(nodes, 2)
    devices = tuple(tuple(generator.permutation(2 * nodes)[: generator.integers(1, 4)].tolist()) for _ in range(experts))
    table = table_of(devices, topology, tuple(generator.integers(0, 4, nodes) / 2))
    k = int(generator.integers(1, experts + 1))
    ids = np.stack([generator.permutation(experts)[:k] for _ in range(20)])
    ids[generator.random(ids.shape) < 0.2] = -1
    masks = visited_nodes(ids, table, layer_id=3, seed=seed)
    for node in range(nodes):
        visited = table.visited(3, ids, np.full(20, node), np.arange(20), seed)
        assert ((masks[:, node, None] >> np.arange(nodes) & 1) == visited).all()


def test_demand_by_hand():
    """Expert 0 on both nodes, 1 on node 1. A token of both goes to {1} from node 1, to {0, 1} from node 0; sources 3 : 1."""
    table = table_of(((0, 1), (1,)), TWO)
    ids = np.array([[0, 1]])
    masks = visited_nodes(ids, table, layer_id=3, seed=0)
    assert masks.tolist() == [[0b11, 0b10]]
    where, pairs = demand(ids, masks, host_masks(table), np.array([[0.75, 0.25]]))
    assert where.tolist() == [[0, 0b10], [0, 0b11], [1, 0b10]]
    assert pairs.tolist() == [0.25, 0.75, 1]


def test_demand_on_many_nodes_is_that_of_the_dense_count():
    """Nine nodes, against counting pair by pair."""
    generator = np.random.default_rng(0)
    devices = tuple(tuple(generator.permutation(9)[: generator.integers(1, 4)].tolist()) for _ in range(12))
    table = table_of(devices, Topology.parse("9x1"))
    ids = np.stack([generator.permutation(12)[:3] for _ in range(50)])
    ids[generator.random(ids.shape) < 0.2] = -1
    masks, hosts = visited_nodes(ids, table, layer_id=3, seed=0), host_masks(table)
    sources = generator.random((50, 9))
    expected = {}
    for t, j, n in np.ndindex(50, 3, 9):
        if ids[t, j] >= 0:
            key = (int(ids[t, j]), int(masks[t, n] & hosts[ids[t, j]]))
            expected[key] = expected.get(key, 0) + sources[t, n]
    where, pairs = demand(ids, masks, hosts, sources)
    assert [tuple(w) for w in where.tolist()] == sorted(expected)
    assert pairs == pytest.approx([expected[key] for key in sorted(expected)])


def choice_of(ids, masks, table, stays=(0, 0)):
    token, copies = np.arange(len(ids)), np.zeros((len(ids), 2))
    return PredictedChoice(table=table, ids=ids, token=token, visited=masks, stays=np.array(stays, float), copies=copies)


def test_loads_of_units_by_hand():
    """Request 0 chose expert 0 (both nodes) four times, request 1 expert 1 (node 1) twice: at home, and on node 1 from anywhere."""
    table = table_of(((0, 1), (1,)), TWO)
    ids, request = np.array([[0], [0], [1], [0], [1], [0]]), np.array([0, 0, 1, 0, 1, 0])
    masks = visited_nodes(ids, table, layer_id=3, seed=0)
    loads, variance = unit_loads(choice_of(ids, masks, table), request, np.eye(2))
    assert loads.tolist() == [[[4, 0], [0, 4]], [[0, 2], [0, 2]]]
    assert variance.tolist() == [[0, 0], [0, 0]]
    # Each token from either node, three times of four from node 0: expert 0 is computed there by that chance.
    loads, variance = unit_loads(choice_of(ids, masks, table), request, np.array([[0.75, 0.25]]))
    assert loads.tolist() == [[[3, 1]], [[0, 2]]]
    assert variance.tolist() == [[4 * 0.75 * 0.25] * 2]


@given(seed=st.integers(0, 99))
def test_drawn_by_weight_no_pair_is_lost(seed):
    generator = np.random.default_rng(seed)
    table = table_of(((0, 1), (1,)), TWO)
    ids = generator.integers(-1, 2, (500, 1))
    loads, variance = unit_loads(choice_of(ids, np.full((500, 2), -1), table), np.arange(500) % 7, np.eye(2))
    assert (loads[:, 0] == loads[:, 1]).all()
    assert loads[:, 0].sum() == (ids >= 0).sum()
    assert loads[:, 0, 0].sum() == (ids == 0).sum() / 2
    assert variance.tolist() == [[(ids == 0).sum() / 4] * 2] * 2


def days_of(loads, kinds=None):
    case = np.arange(len(loads)) % 2 if kinds is None else kinds
    return peaks_of_days(loads, np.zeros((2, 2)), TWO, case, np.zeros(len(loads), np.int64) if kinds is None else kinds, 0)


def test_days_of_equal_requests_are_all_alike():
    """Every request puts 3 on one device and 1 on the other: the busiest carries 1.5 times the mean, whichever are drawn."""
    assert days_of(np.tile([3.0, 1.0], (8, 2, 1))) == pytest.approx(np.full(DAYS, 1.5))
    assert days_of(np.zeros((8, 2, 2))).tolist() == [1.0] * DAYS


def test_draws_of_replicas_make_days_differ():
    loads, even = np.ones((8, 2, 2)), np.arange(8) % 2
    peaks = peaks_of_days(loads, np.full((2, 2), 4.0), TWO, even, np.zeros(8, np.int64), 0)
    assert (peaks > 1).all()
    # Two devices of 8 +- 2: the larger of two normal draws is 0.56 deviations above their mean.
    assert peaks.mean() == pytest.approx(1 + 0.564 * 2 / 8, abs=0.04)


def test_a_fast_device_may_carry_more():
    """Every request puts 2 on a device of speed 2 and 1 on one of speed 1: even on every day."""
    fast = Topology.from_dict({"nodes": [{"devices": [{"relative_speed": 2.0}, {"relative_speed": 1.0}]}]})
    none = np.zeros(8, np.int64)
    assert peaks_of_days(np.tile([2.0, 1.0], (8, 1, 1)), np.zeros((1, 2)), fast, none, none, 0) == pytest.approx(np.ones(DAYS))


def test_days_stray_as_two_samples_of_requests_do():
    """Each of 100 requests loads one of two devices. The share of a day has the variance 2 * 0.25 / 100: the trace is a sample, and the
    day is another. The busiest carries 1 + 2 * sqrt(2 / pi) deviations of the mean; with one sample's variance it would be 1.080."""
    loads = np.zeros((100, 1, 2))
    loads[np.arange(100), 0, np.arange(100) % 2] = 1.0
    none = np.zeros(100, np.int64)
    peaks = np.concatenate([peaks_of_days(loads, np.zeros((1, 2)), Topology.parse("1x2"), none, none, seed) for seed in range(10)])
    assert peaks.mean() == pytest.approx(1 + 2 * (2 / np.pi) ** 0.5 * (0.5 / 100) ** 0.5, abs=0.01)


def test_doubt_makes_the_busiest_busier_and_placement_of_requests_takes_it_away():
    """Requests load device 0 or device 1: even in the mean, not on a day; where each kind has its node, every day is the mean."""
    kinds = np.arange(10) % 2
    loads = np.zeros((10, 2, 2))
    loads[np.arange(10), :, kinds] = 1.0
    assert days_of(loads).mean() > 1.2
    assert days_of(loads, kinds) == pytest.approx(np.ones(DAYS))


@given(requests=st.integers(2, 40), seed=st.integers(0, 99))
def test_recorded_requests_are_the_units(requests, seed):
    generator = np.random.default_rng(seed)
    request = np.unique(generator.integers(0, requests, 50), return_inverse=True)[1]
    units = independent_units(generator.integers(0, 8, (50, 2, 3)), request)
    assert (units is request) == (request.max() + 1 < 50)


def test_streams_of_unknown_requests_are_found():
    """Four sequences recorded side by side, each with experts of its own: tokens agree at distance 4, and runs stay in one sequence."""
    generator = np.random.default_rng(0)
    ids = (np.arange(1024) % 4 * 8)[:, None, None] + np.argsort(generator.random((1024, 2, 8)))[:, :, :3]
    assert stream_distance(ids) == 4
    units = independent_units(ids, np.arange(1024))
    assert np.unique(units).tolist() == list(range(32))
    assert all(len(np.unique(np.flatnonzero(units == unit) % 4)) == 1 for unit in range(32))
    assert np.bincount(units).tolist() == [32] * 32


def test_a_short_trace_has_a_unit_a_token():
    assert independent_units(np.zeros((20, 1, 1), int), np.arange(20)).tolist() == list(range(20))
    assert independent_units(np.zeros((0, 1, 1), int), np.arange(0)).tolist() == []


def test_many_requests_take_no_square_of_memory():
    """40,000 tokens that are their own requests: a square of them would be 12 GiB."""
    ids = np.argsort(np.random.default_rng(0).random((40_000, 1, 8)), axis=2)[:, :, :2].astype(np.int16)
    trace = RoutingTrace(topk_ids=ids, num_experts=8, layer_ids=(0,))
    assert plan(trace, Topology.parse("2x1"), "grace", effort=0.02).slots_total_over_experts == 1.25


def test_a_day_may_be_without_load():
    """One token on two devices, its draws in doubt: days on which rounding leaves nothing are even."""
    loads, variance = np.full((1, 1, 2), 0.5), np.full((1, 2), 0.25)
    one = np.zeros(1, np.int64)
    peaks = peaks_of_days(loads, variance, Topology.parse("1x2"), one, one, 0)
    assert np.isfinite(peaks).all()
    assert 1.0 in peaks
    assert (peaks >= 1).all()
