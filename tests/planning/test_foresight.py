"""What the planner foresees: visited nodes, demand, loads of requests, the busiest device of days to come."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_moe.placement import LayerPlacement, even_weights
from grace_moe.planning import joint_choice_table, plan
from grace_moe.planning.joint.foresight import expected_peak, request_loads
from grace_moe.planning.joint.split import demand
from grace_moe.planning.joint.visits import host_masks, visits
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace

TWO = Topology.parse("2x1")


def table_of(devices, topology, prices=()):
    layer = LayerPlacement(layer_id=3, devices_of_expert=devices, replica_weights=even_weights(devices), node_prices=prices)
    return joint_choice_table(layer, topology)


@settings(max_examples=60, deadline=None)
@given(nodes=st.sampled_from([1, 2, 3, 5, 9, 17, 64]), experts=st.integers(1, 8), seed=st.integers(0, 2**31))
def test_visits_are_those_of_the_replica_choice(nodes, experts, seed):
    generator = np.random.default_rng(seed)
    topology = Topology.regular(nodes, 2)
    devices = tuple(tuple(generator.permutation(2 * nodes)[: generator.integers(1, 4)].tolist()) for _ in range(experts))
    table = table_of(devices, topology, tuple(generator.integers(0, 4, nodes) / 2))
    k = int(generator.integers(1, experts + 1))
    ids = np.stack([generator.permutation(experts)[:k] for _ in range(20)])
    ids[generator.random(ids.shape) < 0.2] = -1
    masks = visits(ids, table, layer_id=3, seed=seed)
    for node in range(nodes):
        visited = table.visited(3, ids, np.full(20, node), np.arange(20), seed)
        assert ((masks[:, node, None] >> np.arange(nodes) & 1) == visited).all()


def test_demand_by_hand():
    """Expert 0 on both nodes, 1 on node 1. A token of both goes to {1} from node 1, to {0, 1} from node 0; sources 3 : 1."""
    table = table_of(((0, 1), (1,)), TWO)
    ids = np.array([[0, 1]])
    masks = visits(ids, table, layer_id=3, seed=0)
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
    masks, hosts = visits(ids, table, layer_id=3, seed=0), host_masks(table)
    sources = generator.random((50, 9))
    expected = {}
    for t, j, n in np.ndindex(50, 3, 9):
        if ids[t, j] >= 0:
            key = (int(ids[t, j]), int(masks[t, n] & hosts[ids[t, j]]))
            expected[key] = expected.get(key, 0) + sources[t, n]
    where, pairs = demand(ids, masks, hosts, sources)
    assert [tuple(w) for w in where.tolist()] == sorted(expected)
    assert pairs == pytest.approx([expected[key] for key in sorted(expected)])


def test_loads_of_requests_by_hand():
    """Request 0 chose expert 0 (both nodes) four times, request 1 expert 1 (node 1) twice: at home, and on node 1 from anywhere."""
    table = table_of(((0, 1), (1,)), TWO)
    ids, request = np.array([[0], [0], [1], [0], [1], [0]]), np.array([0, 0, 1, 0, 1, 0])
    loads = request_loads(ids, request, visits(ids, table, layer_id=3, seed=0), table, 0)
    assert loads.tolist() == [[[4, 0], [0, 4]], [[0, 2], [0, 2]]]


@given(seed=st.integers(0, 99))
def test_drawn_by_weight_no_pair_is_lost(seed):
    generator = np.random.default_rng(seed)
    table = table_of(((0, 1), (1,)), TWO)
    ids = generator.integers(-1, 2, (500, 1))
    loads = request_loads(ids, np.arange(500) % 7, np.full((500, 2), -1), table, seed)
    assert (loads[:, 0] == loads[:, 1]).all()
    assert loads[:, 0].sum() == (ids >= 0).sum()
    assert loads[:, 0, 0].sum() == pytest.approx((ids == 0).sum() / 2, abs=40)


def test_days_of_equal_requests_are_all_alike():
    """Every request puts 3 on one device and 1 on the other: the busiest carries 1.5 times the mean, whichever are drawn."""
    loads = np.tile([3.0, 1.0], (8, 2, 1))
    assert expected_peak(loads, TWO, None, 0) == pytest.approx(1.5)
    assert expected_peak(np.zeros((8, 2, 2)), TWO, None, 0) == 1.0


def test_doubt_makes_the_busiest_busier_and_placement_of_requests_takes_it_away():
    """Requests load device 0 or device 1: even in the mean, not on a day; where each kind has its node, every day is the mean."""
    kinds = np.arange(10) % 2
    loads = np.zeros((10, 2, 2))
    loads[np.arange(10), :, kinds] = 1.0
    assert expected_peak(loads, TWO, None, 0) > 1.2
    assert expected_peak(loads, TWO, kinds, 0) == pytest.approx(1.0)


def test_many_requests_take_no_square_of_memory():
    """40,000 tokens that are their own requests: a square of them would be 12 GiB."""
    ids = np.argsort(np.random.default_rng(0).random((40_000, 1, 8)), axis=2)[:, :, :2].astype(np.int16)
    trace = RoutingTrace(topk_ids=ids, num_experts=8, layer_ids=(0,))
    assert plan(trace, Topology.parse("2x1"), "grace", effort=0.02).slots_total_over_experts == 1.25
