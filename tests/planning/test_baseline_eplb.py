import numpy as np
import pytest

from grace_moe.errors import UsageError
from grace_moe.planning import plan
from grace_moe.planning.baselines.eplb import add_replicas, balanced_packing, rebalance, resolve_duplicates
from grace_moe.topology import Topology
from grace_moe.trace import expert_loads, synthetic_trace

# The example of DeepSeek's README: two layers, 12 experts in 4 groups, 16 slots, 2 nodes, 8 devices.
README_LOADS = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
README_SLOTS = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]
TRACE = synthetic_trace(tokens=600, layers=2, experts=16, top_k=2, skew=1.2)


@pytest.mark.parametrize("layer", [0, 1])
def test_the_readme_example(layer):
    devices = rebalance(np.array(README_LOADS[layer]), 16, 4, 2, 8)
    assert [expert for slots in devices for expert in slots] == README_SLOTS[layer]


def test_pack_heaviest_first_into_the_lightest_with_room():
    # 9 -> pack 0, 8 -> 1, 2 -> 1 (8 < 9); pack 1 is full, so 1 -> 0.
    assert balanced_packing(np.array([1.0, 9.0, 2.0, 8.0]), 2) == [[1, 0], [3, 2]]


def test_pack_of_one_each_keeps_the_order():
    assert balanced_packing(np.array([1.0, 9.0, 2.0]), 3) == [[0], [1], [2]]


def test_replicas_go_to_the_most_load_a_replica():
    # 12, 5, 4: expert 0 (12), then 0 again (6), then 1 (5 > 4).
    experts, count = add_replicas(np.array([12.0, 5.0, 4.0]), 6)
    assert experts == [0, 1, 2, 0, 0, 1]
    assert count.tolist() == [3, 2, 1]


def test_duplicates_on_a_device_make_room_for_the_next_best():
    loads = np.array([90, 10, 20, 30])
    # Device 0 holds expert 0 twice. One copy less leaves loads of 45 + 10 and 45 + 20 + 30. A replica of 2 would make
    # them 65 and 85, one of 3 makes them 70 and 80.
    assert resolve_duplicates(loads, [[0, 0, 1], [0, 2, 3]], np.array([0, 0])) == [[0, 1, 3], [0, 2, 3]]
    # With nodes apart, device 0 has all experts of its node already: the slot stays empty.
    assert resolve_duplicates(loads, [[0, 0, 1], [2, 2, 3]], np.array([0, 1])) == [[0, 1], [2, 3]]


def test_slots_are_equal_and_filled():
    placement = plan(TRACE, Topology.regular(2, 2), "eplb")
    assert (placement.slots_per_device() == 5).all()  # 16 * 1.25 / 4
    assert placement.slots_total_over_experts == 1.25
    assert placement.replica_choice == "wrr"
    assert placement.provenance["notes"] == ["global policy, 5 slots a device"]
    assert all(len(set(w)) == 1 for layer in placement.layers for w in layer.replica_weights)


def test_redundancy_is_rounded_up_to_equal_slots():
    trace = synthetic_trace(tokens=200, experts=10, top_k=2)
    assert (plan(trace, Topology.regular(1, 4), "eplb", redundancy=1.0).slots_per_device() == 3).all()
    assert (plan(trace, Topology.regular(1, 4), "eplb", slots_per_device=4).slots_per_device() == 4).all()


def test_balances_better_than_contiguous():
    topology = Topology.regular(2, 2)
    loads = expert_loads(TRACE)

    def worst(placement):
        carried = np.zeros(4)
        for expert, devices in enumerate(placement.layers[0].devices_of_expert):
            carried[list(devices)] += loads[0, expert] / len(devices)
        return carried.max() / carried.mean()

    assert worst(plan(TRACE, topology, "eplb")) < min(1.1, worst(plan(TRACE, topology, "linear")))


def test_hierarchical_keeps_a_router_group_on_one_node():
    placement = plan(TRACE, Topology.regular(2, 2), "eplb", num_groups=4)
    assert placement.provenance["notes"] == ["hierarchical policy, 5 slots a device"]
    for layer in placement.layers:
        for group in range(4):
            nodes = {device // 2 for expert in range(4 * group, 4 * group + 4) for device in layer.devices_of_expert[expert]}
            assert len(nodes) == 1


def test_hot_expert_is_never_twice_on_a_device():
    # One expert takes nearly all the load: raw EPLB puts many replicas of it on each device.
    trace = synthetic_trace(tokens=400, experts=8, top_k=1, skew=6.0, affinity=0.0)
    raw = rebalance(expert_loads(trace)[0], 16, 1, 1, 2)
    assert any(len(set(slots)) < len(slots) for slots in raw)
    placement = plan(trace, Topology.regular(1, 2), "eplb", slots_per_device=8)
    assert (placement.slots_per_device() == 8).all()


def test_more_devices_than_experts():
    trace = synthetic_trace(tokens=100, experts=4, top_k=2, clusters=2)
    placement = plan(trace, Topology.regular(2, 4), "eplb", redundancy=2.0)
    assert placement.slots_per_device().max() == 1
    assert placement.slots_total_over_experts == 2


@pytest.mark.parametrize(
    ("topology", "options", "message"),
    [
        ("2x2", {"policy": "hierarchical"}, r"1 groups don't divide over 2 nodes; use policy global"),
        ("2x2", {"policy": "hierarchical", "num_groups": 3}, r"16 experts don't divide into 3 groups"),
        ("2x2", {"policy": "hierarchical", "num_groups": 0}, r"16 experts don't divide into 0 groups"),
        ("3x1", {"policy": "hierarchical", "num_groups": 4}, r"4 groups don't divide over 3 nodes"),
        ("2x2", {"policy": "local"}, r"policy 'local' is unknown; use one of auto, global, hierarchical"),
        ("2x2", {"replica_choice": "any"}, r"replica_choice 'any' is unknown; use one of tar, wrr"),
    ],
)
def test_errors_name_the_mend(topology, options, message):
    with pytest.raises(UsageError, match=message):
        plan(TRACE, Topology.parse(topology), "eplb", **options)
