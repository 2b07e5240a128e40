"""Balance asked of all layers together, and EPLB's devices gathered on nodes: by hand, and what always holds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_moe.evaluation import evaluate
from grace_moe.placement import LayerPlacement, Placement
from grace_moe.planning import plan
from grace_moe.planning.baselines.eplb import layer_by_load
from grace_moe.planning.grace.candidates import Candidate, choose_candidates, excess
from grace_moe.planning.grace.search.gathering import gather_devices
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace, synthetic_trace

LAYER = LayerPlacement(layer_id=0, devices_of_expert=((0,),), replica_weights=((1.0,),))


def candidate(traffic, *peaks):
    return Candidate(layer=LAYER, origin="search", peaks=np.array(peaks), traffic=traffic)


def test_excess_by_hand():
    """Floors of 1 and 3 in two layers, peaks of 2 and 3 on one day, 2 and 5 on the other: 5/4 and 7/4."""
    peaks, floors = np.array([[2.0, 2.0], [3.0, 5.0]]), np.array([[1.0, 1.0], [3.0, 3.0]])
    assert excess(peaks, floors, 0.0) == pytest.approx(1.5)
    assert excess(peaks, floors, 2.0) == pytest.approx(2.0)


def test_one_layer_makes_up_for_another():
    """Balance costs 1 copy in layer 0 and 0.1 in layer 1: only layer 1 pays, and the mean is within the tolerance."""
    floors = np.ones((2, 1))
    options = [[candidate(1.0, 1.1), candidate(2.0, 1.0)], [candidate(1.0, 1.1), candidate(1.1, 1.0)]]
    assert choose_candidates(options, floors, 1.2, 0.0) == (0, 0)
    assert choose_candidates(options, floors, 1.06, 0.0) == (0, 1)
    assert choose_candidates(options, floors, 1.0, 0.0) == (1, 1)
    assert choose_candidates(options, floors, 0.99, 0.0) is None


def test_doubt_prefers_the_steady():
    floors = np.ones((1, 2))
    options = [[candidate(1.0, 0.9, 1.1), candidate(1.5, 1.01, 1.01)]]
    assert choose_candidates(options, floors, 1.02, 0.0) == (0,)
    assert choose_candidates(options, floors, 1.02, 1.0) == (1,)


@given(seed=st.integers(0, 9999), layers=st.integers(1, 4), tolerance=st.floats(1.0, 1.3), doubt=st.floats(0, 2))
def test_the_floor_among_the_candidates_always_meets_the_tolerance(seed, layers, tolerance, doubt):
    generator = np.random.default_rng(seed)
    floors = 1 + generator.random((layers, 5))
    options = [
        [*(candidate(generator.random(), *(1 + 2 * generator.random(5))) for _ in range(3)), candidate(2.0, *floor)] for floor in floors
    ]
    chosen = choose_candidates(options, floors, tolerance + 1e-9, doubt)
    assert chosen is not None
    peaks = np.stack([row[index].peaks for row, index in zip(options, chosen, strict=True)])
    assert excess(peaks, floors, doubt) <= tolerance + 1e-9


def test_gathering_brings_companions_to_one_node_by_hand():
    """Experts 0, 1 fire together, as do 2, 3; device d holds expert d for d = 0, 2, 1, 3: one trade, and no token needs two nodes."""
    layer = LayerPlacement(layer_id=0, devices_of_expert=((0,), (2,), (1,), (3,)), replica_weights=((1.0,),) * 4, replica_choice="wrr")
    topology = Topology.parse("2x2")
    gathered = gather_devices(layer, np.array([[0, 1], [2, 3]] * 20), topology, 1.0, 0)
    node = [int(topology.node_of_device[devices[0]]) for devices in gathered.devices_of_expert]
    assert node[0] == node[1] != node[2] == node[3]


@settings(max_examples=25)
@given(seed=st.integers(0, 9999), shape=st.sampled_from(["1x4", "2x2", "4x2", "3x1"]), slots=st.integers(4, 6))
def test_gathering_moves_whole_devices_and_adds_no_copies(seed, shape, slots):
    trace = synthetic_trace(tokens=300, experts=12, top_k=3, clusters=3, affinity=0.9, requests=30, seed=seed)
    topology = Topology.parse(shape)
    by_load = layer_by_load(0, trace.topk_ids[:, 0], 12, topology, slots)
    gathered = gather_devices(by_load, trace.topk_ids[:, 0].astype(np.int64), topology, 0.2, seed)

    def measured(layer):
        placement = Placement(
            topology=topology, num_experts=12, layers=(layer,), model="", replica_choice="wrr", provenance={}, source="test"
        )
        return evaluate(placement, trace)

    before, after = measured(by_load), measured(gathered)
    assert sorted(before.device_load[0]) == sorted(after.device_load[0])
    assert sorted(before.slots[0]) == sorted(after.slots[0])
    # Expected copies never rise; what is drawn may stray a little.
    assert after.cross_node_copies <= before.cross_node_copies + 0.1


def test_devices_of_different_speed_stay_where_they_are():
    topology = Topology.from_dict({"nodes": [{"devices": [{"relative_speed": 2.0}]}, {"devices": [{"relative_speed": 1.0}]}]})
    layer = LayerPlacement(layer_id=0, devices_of_expert=((0,), (1,)), replica_weights=((1.0,),) * 2, replica_choice="wrr")
    assert gather_devices(layer, np.array([[0, 1]]), topology, 1.0, 0) == layer


def test_unknown_requests_are_doubted_more():
    """The same tokens, once with requests, once without: both are planned, every expert is placed, and slots are the same."""
    trace = synthetic_trace(tokens=800, layers=2, experts=16, top_k=3, clusters=4, affinity=0.9, requests=40, seed=1)
    unknown = RoutingTrace(topk_ids=trace.topk_ids, num_experts=16, layer_ids=trace.layer_ids)
    plans = [plan(t, Topology.parse("2x2"), "grace", effort=0.05) for t in (trace, unknown)]
    assert plans[0].slots_total_over_experts == plans[1].slots_total_over_experts == 1.25
