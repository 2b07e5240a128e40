"""Slots that follow the devices' memory: how many each gets, and that plans for time keep to them."""

import math
from dataclasses import replace

import numpy as np
import pytest
from benchmarks.small_optimum import gap, instance
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.cost.sizes import OLMOE
from grace_moe.cost.step import Setting
from grace_moe.errors import UsageError
from grace_moe.placement import LayerPlacement, even_weights
from grace_moe.planning import PlanningTask, plan
from grace_moe.planning.grace.slots_by_memory import within_slots
from grace_moe.topology import Topology
from grace_moe.trace import synthetic_trace

TRACE = synthetic_trace(tokens=400, experts=8, top_k=2, layers=1, requests=80)
SETTING = Setting(model=replace(OLMOE, num_experts=8, top_k=2))


def with_memory(topology, memory):
    given_to = iter(memory)
    nodes = tuple(replace(n, devices=tuple(replace(d, memory_bytes=next(given_to)) for d in n.devices)) for n in topology.nodes)
    return replace(topology, nodes=nodes)


@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.floats(1.0, 2.0))
def test_what_small_devices_lack_larger_ones_get(memory, redundancy):
    topology = with_memory(Topology.parse(f"1x{len(memory)}"), memory)
    if sum(min(m, 8) for m in memory) < 8:
        with pytest.raises(UsageError, match="memory_bytes"):
            PlanningTask(recording=TRACE, topology=topology, redundancy=redundancy, expert_bytes=1)
        return
    task = PlanningTask(recording=TRACE, topology=topology, redundancy=redundancy, expert_bytes=1)
    slots, limits = task.slots_by_memory, task.slot_limits
    equal = math.ceil(redundancy * 8 / len(memory) - 1e-9)
    assert sum(slots) >= min(equal * len(memory), sum(limits))
    assert all(own <= limit for own, limit in zip(slots, limits, strict=True))
    assert all(own == limit or own == max(slots) for own, limit in zip(slots, limits, strict=True))
    if min(limits) >= equal:
        assert set(slots) == {task.equal_slots}


def test_a_plan_for_time_uses_unequal_memory_and_one_for_copies_refuses_it():
    topology = with_memory(Topology.parse("2x2:h100-400g"), (1, 2, 3, 5))
    planned = plan(TRACE, topology, setting=SETTING, expert_bytes=1, effort=0.1)
    assert (planned.slots_per_device() <= np.array([1, 2, 3, 5])).all()
    assert planned.slots_per_device().sum() > 8  # 11 slots hold some replicas
    assert any("slots by memory: 1, 2, 3, 5" in note for note in planned.provenance["notes"])
    with pytest.raises(UsageError, match="smallest device has room for 1"):
        plan(TRACE, topology, expert_bytes=1, effort=0.1)


@given(st.data())
def test_a_placement_is_made_to_fit(data):
    devices = data.draw(st.integers(2, 4))
    hosts = tuple(tuple(data.draw(st.lists(st.integers(0, devices - 1), min_size=1, max_size=devices, unique=True))) for _ in range(6))
    slots = data.draw(st.lists(st.integers(1, 6), min_size=devices, max_size=devices).filter(lambda some: sum(some) >= 6))
    layer = LayerPlacement(layer_id=0, devices_of_expert=hosts, replica_weights=even_weights(hosts))
    fits = within_slots(layer, Topology.parse(f"1x{devices}"), slots, np.arange(6.0))
    held = np.bincount([device for row in fits.devices_of_expert for device in row], minlength=devices)
    assert (held <= slots).all()
    assert all(len(set(row)) == len(row) >= 1 for row in fits.devices_of_expert)
    if (np.bincount([device for row in hosts for device in row], minlength=devices) <= slots).all():
        assert fits is layer


@pytest.mark.parametrize(
    "seed", [109, 112]
)  # a slow device before a fast one on a node; full devices, where one copy makes way for another
def test_small_unequal_instances_are_within_2_percent_of_the_optimum(seed):
    assert gap(instance(seed)) <= 0.02
