"""EPLB's devices gathered on nodes: by hand, and what always holds."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_moe.evaluation import evaluate
from grace_moe.placement import LayerPlacement, Placement
from grace_moe.planning.baselines.eplb import layer_by_load
from grace_moe.planning.grace.search.gathering import gather_devices
from grace_moe.topology import Topology
from grace_moe.trace import synthetic_trace


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
