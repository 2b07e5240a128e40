"""Our planner: its exact objective against brute force, its pieces by hand, and what the whole must hold."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from grace_moe.choice.cover import token_costs, tokens_of_experts
from grace_moe.choice.node_sets import node_sets
from grace_moe.errors import UsageError
from grace_moe.evaluation import evaluate
from grace_moe.placement import difference
from grace_moe.planning import plan
from grace_moe.planning.grace.search.devices import NodeShare, PackingOptions, pack_devices
from grace_moe.planning.grace.search.node_copies import NodeLimits, seed_copies
from grace_moe.planning.grace.search.node_state import SearchOptions
from grace_moe.planning.grace.search.nodes import search_nodes
from grace_moe.planning.grace.split import even_out
from grace_moe.planning.grace.uncertainty import load_shares
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace, synthetic_trace

QUICK = {"effort": 0.05}


def copies_over_all_sources(host_masks, nodes):
    """By trying every set of nodes: sum over sources of the fewest other nodes that, with the source, serve all experts."""
    total = 0
    for source in range(nodes):
        others = [n for n in range(nodes) if n != source]
        total += next(
            size
            for size in range(nodes)
            if any(all(mask & sum(1 << n for n in (source, *chosen)) for mask in host_masks) for chosen in combinations(others, size))
        )
    return total


@settings(max_examples=150)
@given(nodes=st.sampled_from([1, 2, 3, 4, 5, 7]), data=st.data())
def test_the_cost_of_a_token_is_exact(nodes, data):
    masks = data.draw(st.lists(st.integers(1, (1 << nodes) - 1), min_size=1, max_size=5))
    ids = np.full((nodes + 1, len(masks) + 1), len(masks), np.int32)  # the last one of each is "none"
    ids[:, :-1] = np.arange(len(masks))
    costs = token_costs(ids, np.arange(-1, nodes), np.array(masks), node_sets(nodes)).astype(int).tolist()
    assert costs[0] == copies_over_all_sources(masks, nodes)
    assert sum(costs[1:]) == nodes * costs[0]


def test_tokens_of_experts_by_hand():
    """Three experts; 3 means none."""
    starts, members = tokens_of_experts(np.array([[0, 2], [2, 3], [0, 1]], np.int32), 3)
    assert [members[starts[e] : starts[e + 1]].tolist() for e in range(3)] == [[0, 2], [2], [0, 1]]


def test_load_shares_by_hand():
    """Two requests of two pairs: one chooses expert 0 twice, the other expert 1: shares are even, and all in doubt."""
    share, covariance = load_shares(np.array([[0], [0], [1], [1]]), np.array([0, 0, 1, 1]), 2)
    assert share.tolist() == [0.5, 0.5]
    # z = (1, -1) and (-1, 1); 2 * sum z z^T / 16 = 0.25 on the diagonal, -0.25 off it, shrunk by 0.2.
    assert covariance == pytest.approx(np.array([[0.25, -0.2], [-0.2, 0.25]]))
    assert load_shares(np.full((3, 2), -1), np.zeros(3, np.int64), 2)[0].tolist() == [0.5, 0.5]


def room_of(slots, devices):
    devices = np.array(devices)
    return NodeLimits(slots=np.array(slots), devices=devices, capacity=devices / devices.sum())


@given(
    loads=st.lists(st.floats(0, 100), min_size=2, max_size=12),
    nodes=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    spare=st.integers(0, 3),
)
def test_the_start_fills_the_slots_and_places_every_expert(loads, nodes, spare):
    per_device = -(-len(loads) // sum(nodes)) + spare
    assume(per_device <= len(loads))
    room = room_of([n * per_device for n in nodes], nodes)
    share = np.array(loads) / max(sum(loads), 1e-9)
    copies = seed_copies(share, room)
    assert copies.sum(axis=1).tolist() == room.slots.tolist()
    assert (copies <= room.devices[:, None]).all()
    assert (copies.sum(axis=0) >= 1).all()


def test_search_finds_the_planted_halves():
    """Tokens choose 3 of experts 0..7 or 3 of 8..15; two nodes of eight slots: each half belongs on one node, and tokens of
    either half then reach one node: half a copy a token over both sources."""
    generator = np.random.default_rng(0)
    ids = np.array([generator.permutation(8)[:3] + 8 * (t % 2) for t in range(400)])
    share, noise = load_shares(ids, np.arange(400), 16)
    room = room_of([8, 8], [2, 2])
    mixed = np.array([[1, 0] * 8, [0, 1] * 8])
    found = search_nodes(ids, share, noise, room, SearchOptions(proposals=20_000), 1, mixed)
    assert found.sum(axis=1).tolist() == [8, 8]
    assert sorted(map(tuple, found)) == [(0,) * 8 + (1,) * 8, (1,) * 8 + (0,) * 8]


def test_packing_puts_companions_together_and_evens_load():
    """Experts 0, 1 always fire together, as do 2, 3: two devices of two slots."""
    rows = np.array([[0, 1], [2, 3]] * 50)
    node = NodeShare(copies=np.ones(4, np.int64), load=np.full(4, 50.0), share_here=np.ones(4), rows=rows, fair=np.full(2, 100.0))
    slot = pack_devices(node, 2, np.zeros((4, 4)), PackingOptions(), seed=0)
    assert sorted(tuple(sorted(s)) for s in slot.tolist()) == [(0, 1), (2, 3)]


def test_copies_stay_where_they_are_unless_it_pays_to_move_them():
    """Two devices of two slots. As nothing is gained by a swap, experts 1 and 2 stay together; 3 takes the place of what is gone."""
    held = np.array([[False, True, True, False, False], [True, False, False, False, True]])
    node = NodeShare(
        copies=np.array([1, 1, 1, 1, 0]),
        load=np.array([50.0, 50, 50, 50, 0]),
        share_here=np.ones(5),
        rows=np.array([[0], [1], [2], [3]] * 50),
        fair=np.full(2, 100.0),
        held=held,
    )
    slot = pack_devices(node, 2, np.zeros((5, 5)), PackingOptions(stay=0.05, hot=1e-4), seed=0)
    assert slot.tolist() == [[1, 2], [0, 3]]
    companions = np.array([[0, 1], [2, 3]] * 50)
    dear = replace(node, rows=companions)
    assert pack_devices(dear, 2, np.zeros((5, 5)), PackingOptions(stay=10.0), seed=0).tolist() == [[1, 2], [0, 3]]
    cheap = pack_devices(dear, 2, np.zeros((5, 5)), PackingOptions(stay=0.0), seed=0)
    assert sorted(tuple(sorted(s)) for s in cheap.tolist()) == [(0, 1), (2, 3)]


def test_the_split_evens_devices_by_hand():
    """Expert 0 (90 pairs) on both devices, expert 1 (30) on device 0 only, one node: 30 + 30 against 60."""
    cells = np.array([[0, 1], [1, 1]]), np.array([90.0, 30.0])
    weights, load = even_out(cells, np.array([[0, 1], [0, -1]]), np.array([0, 0]), np.ones(2))
    assert weights[0] / weights[0].sum() == pytest.approx([1 / 3, 2 / 3], abs=0.01)
    assert load == pytest.approx([60, 60], abs=1)
    twice_as_fast, _ = even_out(cells, np.array([[0, 1], [0, -1]]), np.array([0, 0]), np.array([2.0, 1.0]))
    assert twice_as_fast[0] / twice_as_fast[0].sum() == pytest.approx([50 / 90, 40 / 90], abs=0.01)


@pytest.fixture(scope="module")
def clustered():
    trace = synthetic_trace(tokens=4000, layers=2, experts=32, top_k=4, clusters=4, affinity=0.9, skew=0.7, requests=80, seed=3)
    return trace.split_requests()


@pytest.mark.parametrize(("shape", "share"), [("2x2", 0.8), ("4x2", 0.9)])
def test_less_traffic_than_eplb_at_its_balance(clustered, shape, share):
    planned_on, measured_on = clustered
    ours = evaluate(plan(planned_on, Topology.parse(shape), "grace", effort=0.3), measured_on)
    theirs = evaluate(plan(planned_on, Topology.parse(shape), "eplb"), measured_on)
    assert ours.slots_total_over_experts == theirs.slots_total_over_experts
    assert ours.cross_node_copies < share * theirs.cross_node_copies
    assert ours.load_max_over_mean < 1.15 * theirs.load_max_over_mean


@pytest.mark.parametrize("shape", ["1x1", "1x4", "2x2", "8x2", "3x1"])
def test_equal_slots_everywhere_every_expert_placed(clustered, shape):
    topology = Topology.parse(shape)
    placement = plan(clustered[0], topology, "grace", **QUICK)
    slots = placement.slots_per_device()
    assert slots.max() <= -(-32 * 5 // 4 // topology.num_devices) + 1
    assert placement.replica_choice == "joint"


def test_nodes_of_unequal_size_and_speed_share_the_load_by_speed(clustered):
    topology = Topology.from_dict(
        {"nodes": [{"devices": [{"relative_speed": 2.0}, {"relative_speed": 2.0}]}, {"devices": [{"relative_speed": 1.0}]}]}
    )
    planned_on, measured_on = clustered
    evaluation = evaluate(plan(planned_on, topology, "grace", effort=0.3), measured_on)
    assert evaluation.load_max_over_mean < 1.25  # loads are over speed: equal shares of pairs would give 1.67


def test_the_plan_does_not_depend_on_threads_and_repeats(clustered):
    topology = Topology.parse("2x2")
    one = plan(clustered[0], topology, "grace", threads=1, **QUICK)
    two = plan(clustered[0], topology, "grace", threads=2, **QUICK)
    assert one.layers == two.layers == plan(clustered[0], topology, "grace", threads=2, **QUICK).layers
    assert one.layers != plan(clustered[0], topology, "grace", seed=1, threads=1, **QUICK).layers


def test_a_limit_on_slots_is_kept(clustered):
    placement = plan(clustered[0], Topology.parse("2x2"), "grace", slots_per_device=8, **QUICK)
    assert placement.slots_total_over_experts == 1.0
    assert (placement.slots_per_device() == 8).all()


def test_a_trace_without_structure_keeps_eplbs_balance():
    """Uniform routing: little to gain, nothing to lose."""
    generator = np.random.default_rng(1)
    ids = np.argsort(generator.random((4000, 1, 32)), axis=2)[:, :, :4].astype(np.int16)
    trace = RoutingTrace(topk_ids=ids, num_experts=32, layer_ids=(0,), request_ids=np.arange(4000, dtype=np.int32) // 50)
    planned_on, measured_on = trace.split_requests()
    ours = evaluate(plan(planned_on, Topology.parse("2x2"), "grace", effort=0.3), measured_on)
    assert ours.load_max_over_mean < 1.1


def test_more_nodes_than_the_search_takes_fall_back_and_say_so(clustered):
    placement = plan(clustered[0], Topology.parse("65x1"), "grace")
    assert placement.replica_choice == "joint"
    assert any("more nodes than the search takes" in note for note in placement.provenance["notes"])
    for options in ({"request_placement": True}, {"start": placement}):
        with pytest.raises(UsageError, match="take up to 64 nodes, and 65x1 has 65; plan without them"):
            plan(clustered[0], Topology.parse("65x1"), "grace", **options)


def test_a_layer_that_would_fall_behind_eplb_has_eplbs_devices_gathered_on_nodes():
    """Few slots for hot experts: no layout that keeps tokens on few nodes can be as even as EPLB's. An open tolerance takes it."""
    trace = synthetic_trace(tokens=2000, layers=2, experts=16, top_k=4, clusters=4, affinity=0.95, skew=1.5, requests=20, seed=3)
    planned_on, measured_on = trace.split_requests()
    topology = Topology.parse("4x8")
    ours, theirs = plan(planned_on, topology, "grace", **QUICK), plan(planned_on, topology, "eplb")
    assert ours.provenance["notes"] == [
        "layers 0, 1: no layout of our own within the tolerance on balance: devices as eplb fills them, gathered on nodes"
    ]
    gathered, eplb = evaluate(ours, measured_on), evaluate(theirs, measured_on)
    assert gathered.load_max_over_mean == eplb.load_max_over_mean
    assert gathered.cross_node_copies < 0.9 * eplb.cross_node_copies
    uneven = evaluate(plan(planned_on, topology, "grace", tolerance=10, **QUICK), measured_on)
    assert uneven.cross_node_copies < gathered.cross_node_copies


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"effort": 0}, "effort 0"),
        ({"threads": 0}, "threads 0"),
        ({"threads": "many"}, "threads 'many'"),
        ({"price": -1}, "price -1"),
        ({"price": float("inf")}, "price inf"),
        ({"price": [1]}, r"price \[1\]"),
        ({"tolerance": 0.5}, "tolerance 0.5"),
        ({"request_placement": "yes"}, "request_placement 'yes'"),
    ],
)
def test_options_out_of_range(clustered, options, message):
    with pytest.raises(UsageError, match=message):
        plan(clustered[0], Topology.parse("2x2"), "grace", **options)


def test_dearer_moves_are_fewer():
    trace = synthetic_trace(tokens=1200, experts=24, top_k=4, layers=1, seed=3)
    other = synthetic_trace(tokens=1200, experts=24, top_k=4, layers=1, seed=4)
    topology = Topology.parse("2x2")
    start = plan(trace, topology, slots_per_device=8, effort=0.1)
    moved = [
        difference(plan(other, topology, slots_per_device=8, start=start, move_price=price, tolerance=100.0), start).moved
        for price in (0.0, 0.01, 1.0, 1e5)
    ]
    assert moved == sorted(moved, reverse=True)
    assert moved[0] > moved[-1] == 0


def test_a_move_price_needs_what_serves():
    with pytest.raises(UsageError, match="give start too"):
        plan(synthetic_trace(tokens=100, experts=8), Topology.parse("2x2"), move_price=0.1)
