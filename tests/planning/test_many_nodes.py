"""Beyond 8 nodes: groups of nodes, then their nodes; what a plan there must hold, and what it gains."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_moe.choice.node_sets import MAX_MASK_NODES
from grace_moe.evaluation import Serving, evaluate
from grace_moe.placement import difference
from grace_moe.planning import plan
from grace_moe.planning.grace.search.node_copies import NodeLimits, seed_copies
from grace_moe.planning.grace.search.node_groups import groups_of, search_many_nodes
from grace_moe.planning.grace.search.node_state import SearchOptions
from grace_moe.planning.grace.uncertainty import load_shares
from grace_moe.topology import Topology
from grace_moe.trace import synthetic_trace


@given(nodes=st.integers(1, MAX_MASK_NODES))
def test_groups_are_near_equal_runs_and_few_enough(nodes):
    groups = groups_of(nodes)
    assert [n for group in groups for n in group] == list(range(nodes))
    sizes = [len(group) for group in groups]
    assert len(groups) <= 8
    assert max(sizes) <= 8
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=15)
@given(
    nodes=st.integers(9, 20),
    per_node=st.integers(1, 3),
    spare=st.integers(0, 2),
    pinned=st.booleans(),
    again=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_every_slot_is_filled_and_every_expert_held(nodes, per_node, spare, pinned, again, seed):
    generator = np.random.default_rng(seed)
    experts = int(generator.integers(nodes, 40))
    devices = generator.integers(1, per_node + 1, nodes)
    slots = -(-experts // int(devices.sum())) + spare
    slots = min(slots, experts)
    room = NodeLimits(slots=devices * slots, devices=devices, capacity=devices / devices.sum())
    ids = np.stack([generator.permutation(experts)[:3] for _ in range(60)])
    ids[generator.random(ids.shape) < 0.1] = -1
    share, noise = load_shares(ids, np.arange(60) // 4, experts)
    pins = generator.integers(-1, nodes, 60) if pinned else None
    start = seed_copies(share, room)
    found = search_many_nodes(ids, share, noise, room, SearchOptions(proposals=400), 1, start, pins)
    if again:
        found = search_many_nodes(ids, share, noise, room, SearchOptions(proposals=400, hot=1e-3), 2, found, pins)
    assert (found.sum(axis=1) == room.slots).all()
    assert (found <= devices[:, None]).all()
    assert (found.sum(axis=0) >= 1).all()


LAYER_TOLERANCE = 1.05
"""A trace of one layer has no others to make up for it."""


@pytest.fixture(scope="module")
def halves():
    trace = synthetic_trace(tokens=6000, layers=1, experts=48, top_k=4, clusters=6, affinity=0.9, skew=0.6, requests=600, seed=3)
    return trace.split_requests()


@pytest.mark.parametrize("shape", ["9x2", "12x2"])
def test_less_traffic_than_eplb(halves, shape):
    planned_on, measured_on = halves
    topology = Topology.parse(shape)
    ours, theirs = plan(planned_on, topology, effort=0.2, tolerance=LAYER_TOLERANCE), plan(planned_on, topology, "eplb")
    assert ours.provenance["notes"] == []
    assert (ours.slots_per_device() == theirs.slots_per_device()).all()
    found, eplb = evaluate(ours, measured_on), evaluate(theirs, measured_on)
    assert found.cross_node_copies < 0.9 * eplb.cross_node_copies
    assert found.load_max_over_mean < LAYER_TOLERANCE * eplb.load_max_over_mean


def test_planning_again_and_request_placement_work_there_too(halves):
    topology = Topology.parse("10x2")
    options = {"effort": 0.1, "tolerance": LAYER_TOLERANCE}
    first = plan(halves[0], topology, **options)
    again = plan(halves[1], topology, start=first, **options)
    anew = plan(halves[1], topology, **options)
    assert difference(again, first).moved < difference(anew, first).moved
    dealt = evaluate(first, halves[1])
    sent = evaluate(plan(halves[0], topology, request_placement=True, **options), halves[1], serving=Serving(first_tokens=32))
    assert sent.cross_node_copies < 0.95 * dealt.cross_node_copies
