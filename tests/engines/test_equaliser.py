"""The slot equaliser: every device gets its slots, nothing is lost, and the replicas it adds help."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_moe import evaluate, plan
from grace_moe.engines import SlotMap, equalise
from grace_moe.engines.equaliser import even_out
from grace_moe.errors import MismatchError, PlacementError, UsageError
from grace_moe.placement import LayerPlacement, Placement, even_weights
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace, synthetic_trace
from tests.engines.samples import placements


def placed(devices, topology="2x2", **kwargs):
    layer = LayerPlacement(layer_id=3, devices_of_expert=devices, replica_weights=even_weights(devices), **kwargs)
    return Placement(topology=Topology.parse(topology), num_experts=len(devices), layers=(layer,))


def test_a_choice_of_its_own_for_decode_is_left_out_and_said():
    """Where the layer is kept as it is, and where spare slots are filled."""
    decode = placed(((0, 1), (2,), (3,)), decode_weights=((0.0, 1.0), (1.0,), (1.0,)))
    for slots in (1, 2):
        equal = equalise(decode, slots_per_device=slots)
        assert equal.placement.layers[0].decode_weights == ()
        assert "decode_weights left out: the engine chooses replicas in decode as in prefill" in equal.notes()
    assert not any("decode" in note for note in equalise(placed(((0, 1), (2,), (3,)))).notes())


@given(placements(), st.data())
def test_every_device_has_its_slots_and_every_expert_a_place(placement, data):
    devices = placement.topology.num_devices
    slots = data.draw(st.none() | st.integers(-(-placement.num_experts // devices), placement.num_experts))
    before = placement.slots_per_device().max()
    equal = equalise(placement, slots_per_device=slots)
    assert (equal.placement.slots_per_device() == (before if slots is None else slots)).all()  # Placement checks the rest
    gained = equal.placement.slots_per_device().sum() - placement.slots_per_device().sum()
    assert gained == equal.added - equal.dropped
    assert equalise(placement, slots_per_device=slots).placement == equal.placement
    again = equalise(equal.placement)
    assert again.placement == equal.placement
    assert not again.notes()
    SlotMap.of(equal.placement)
    if slots is None:
        for old, new in zip(placement.layers, equal.placement.layers, strict=True):
            for was, now in zip(old.devices_of_expert, new.devices_of_expert, strict=True):
                assert now[: len(was)] == was  # nothing is taken away, and primaries stay


def test_a_spare_slot_goes_to_the_hot_expert():
    """4 experts on 1x2 with loads 7, 1, 1, 1: devices compute 8 and 2. By hand: with expert 0 on device 1 too, 4.5 and 5.5; with expert 1, 7.5
    and 2.5. Then device 0 has a spare slot: with 2 or 3 on it, both compute 5; the lower number wins."""
    trace = RoutingTrace(topk_ids=np.repeat(np.arange(4, dtype=np.int16), [7, 1, 1, 1])[:, None, None], num_experts=4, layer_ids=(3,))
    equal = equalise(placed(((0,), (0,), (1,), (1,)), "1x2"), slots_per_device=3, trace=trace)
    assert equal.placement.layers[0].devices_of_expert == ((0, 1), (0,), (1, 0), (1,))
    assert equal.placement.layers[0].replica_weights[0] == (0.5, 0.5)
    assert (equal.added, equal.dropped, equal.moved) == (2, 0, 0)


def test_a_spare_slot_goes_where_it_saves_copies():
    """2 nodes of one device, all loads alike: node 0 holds 0, 1, 5 and node 1 holds 2, 3, 4. Tokens choose (0, 5), (1, 2) or (3, 4). By hand: from
    node 0, expert 2 is all that (1, 2) leave for, and (3, 4) leave for two; from node 1, expert 1 is all that (1, 2) leave for."""
    trace = RoutingTrace(topk_ids=np.array([(0, 5), (1, 2), (3, 4)] * 3, dtype=np.int16)[:, None], num_experts=6, layer_ids=(3,))
    equal = equalise(placed(((0,), (0,), (1,), (1,), (1,), (0,)), "2x1"), slots_per_device=4, trace=trace)
    assert equal.placement.layers[0].devices_of_expert == ((0,), (0, 1), (1, 0), (1,), (1,), (0,))


def test_a_full_device_drops_replicas_before_it_moves_experts():
    equal = equalise(placed(((0, 1), (0,), (0,), (2,))), slots_per_device=1)
    assert sorted(d for (d, *_) in equal.placement.layers[0].devices_of_expert) == [0, 1, 2, 3]
    assert (equal.dropped, equal.moved, equal.added) == (1, 1, 0)
    assert equal.notes()[0].startswith("1 slot on every device took 0 replicas more, 1 fewer and 1 move over")
    assert "without a trace" in equal.notes()[1]


def test_room_is_made_where_all_devices_are_full():
    """Device 0 holds three experts that are nowhere else; the others are full of replicas."""
    equal = equalise(placed(((0,), (0,), (0,), (1, 2, 3), (1, 2, 3), (2, 3))), slots_per_device=2)
    assert (equal.placement.slots_per_device() == 2).all()


def test_it_helps_on_routing_it_has_not_seen():
    trace = synthetic_trace(tokens=3000, layers=2, experts=32, top_k=4, seed=1)
    first, second = trace.split_requests()
    bare = plan(first, Topology.parse("2x2"), "linear")
    blind = equalise(bare, slots_per_device=12).placement
    equal = equalise(bare, slots_per_device=12, trace=first).placement
    before, guess, after = (evaluate(p, second) for p in (bare, blind, equal))
    assert after.cross_node_copies < before.cross_node_copies
    assert after.load_max_over_mean < before.load_max_over_mean
    assert after.load_max_over_mean < guess.load_max_over_mean


@pytest.mark.parametrize(("slots", "says"), [(0, "need 1 to 4"), (5, "need 1 to 4")])
def test_impossible_slots_are_refused(slots, says):
    with pytest.raises(UsageError, match=says):
        equalise(placed(((0,), (1,), (2,), (3,))), slots_per_device=slots)


def test_a_trace_of_another_model_is_refused():
    with pytest.raises(MismatchError, match="num_experts: 4"):
        equalise(placed(((0,), (1,), (2,), (3,))), trace=synthetic_trace(tokens=10, experts=8, top_k=2))


def test_a_map_needs_equal_slots():
    with pytest.raises(MismatchError, match="devices hold 0 to 2 experts"):
        SlotMap.of(placed(((0, 1), (0, 1)), "2x2"))


def slot_map(rows, ranks=2, experts=3, layers=None):
    return SlotMap(
        physical_to_logical=np.array(rows, dtype=np.int32),
        layer_ids=tuple(range(len(rows))) if layers is None else layers,
        num_experts=experts,
        num_ranks=ranks,
    )


def test_derived_maps_by_hand():
    slots = slot_map([[0, 1, 2, 0], [2, 1, 0, 2]])
    assert slots.logical_replica_count().tolist() == [[2, 1, 1], [1, 1, 2]]
    assert slots.logical_to_physical_map().tolist() == [[[0, 3], [1, -1], [2, -1]], [[2, -1], [1, -1], [0, 3]]]
    assert (slots.num_slots, slots.slots_per_rank, slots.num_redundant) == (4, 2, 1)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([[0, 1, 2]], "3 slots a layer are not divisible by 2 ranks"),
        ([[0, 1, 2, 3]], "a slot names expert 3"),
        ([[0, 1, 2, -1]], "a slot names expert -1"),
        ([[0, 1, 1, 0]], "expert 2 is in no slot"),
        ([], "shape"),
    ],
)
def test_broken_maps_are_refused(rows, says):
    with pytest.raises(PlacementError, match=says):
        slot_map(rows)


def test_a_layer_named_twice_is_refused():
    with pytest.raises(PlacementError, match="named twice"):
        slot_map([[0, 1, 2, 0], [0, 1, 2, 0]], layers=(1, 1))


@given(placements(), st.data())
def test_evening_out_changes_nothing_between_nodes(placement, data):
    equal = equalise(placement).placement
    loads = np.array(
        [data.draw(st.lists(st.integers(0, 99), min_size=placement.num_experts, max_size=placement.num_experts)) for _ in placement.layers]
    )
    even = even_out(equal, loads)
    node = placement.topology.node_of_device
    for old, new in zip(equal.layers, even.layers, strict=True):
        for was, now in zip(old.devices_of_expert, new.devices_of_expert, strict=True):
            assert sorted(node[list(was)]) == sorted(node[list(now)])
    assert (even.slots_per_device() == equal.slots_per_device()).all()


def test_evening_out_by_hand():
    """2x2; on node 0, device 0 holds the experts with loads 5 and 4, device 1 those with 2 and 1. By hand: 5 and 1, 4 and 2 make 6 and 6. On
    node 1, 3 and 3 stay. Two swaps do it, 5 with 2 and 4 with 1: the first in order wins."""
    before = placed(((0,), (0,), (1,), (1,), (2,), (2,), (3,), (3,)), "2x2")
    ids = np.repeat(np.arange(8, dtype=np.int16), [5, 4, 2, 1, 3, 3, 3, 3])[:, None, None]
    equal = equalise(before, trace=RoutingTrace(topk_ids=ids, num_experts=8, layer_ids=(3,)))
    assert equal.placement.layers[0].devices_of_expert == ((1,), (0,), (0,), (1,), (2,), (2,), (3,), (3,))
    assert equal.swapped == 1
    assert equal.notes() == ("1 swap of experts inside nodes to even the load out, as engines share it",)


def test_a_plan_by_memory_is_refused_where_a_device_has_no_room_for_equal_slots():
    whole = Topology.parse("1x2")
    small, large = whole.nodes[0].devices
    node = replace(whole.nodes[0], devices=(replace(small, memory_bytes=10), replace(large, memory_bytes=30)))
    rows = ((0,), (1,), (1,), (1,))
    layer = LayerPlacement(layer_id=0, devices_of_expert=rows, replica_weights=even_weights(rows))
    topology = replace(whole, nodes=(node,))
    placement = Placement(topology=topology, num_experts=4, layers=(layer,), provenance={"options": {"expert_bytes": 10}})
    with pytest.raises(UsageError, match="room for 1 experts a layer, and engines need equal slots, 3"):
        equalise(placement)
