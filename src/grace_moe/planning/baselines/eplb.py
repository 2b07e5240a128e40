"""DeepSeek's expert-parallelism load balancer: replicas for the heaviest experts, packed evenly. Load is all it sees.

Source: github.com/deepseek-ai/EPLB, restated by its description; this code is our own.
"""

from __future__ import annotations

import heapq
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.errors import UsageError
from grace_moe.placement import REPLICA_CHOICES, LayerPlacement
from grace_moe.planning.groups.affinity import layer_loads
from grace_moe.planning.groups.even_layers import layer_of_devices
from grace_moe.planning.notes import whole_slots
from grace_moe.planning.option_values import check_choice
from grace_moe.planning.task import PlannedLayers, PlanningTask
from grace_moe.topology import Topology

POLICIES = ("auto", "global", "hierarchical")


def balanced_packing(weights: npt.NDArray[np.float64], num_packs: int) -> list[list[int]]:
    """Items in packs of equal count: heaviest first, each to the lightest pack with room. Ties: the lower number.

    Args:
        weights: `[items]`; `num_packs` divides their number.

    Returns:
        Items of each pack, in the order in which they came.
    """
    per_pack = len(weights) // num_packs
    if per_pack == 1:
        return [[item] for item in range(len(weights))]
    packs: list[list[int]] = [[] for _ in range(num_packs)]
    with_room = [(0.0, pack) for pack in range(num_packs)]  # a heap of what each carries
    for item in np.argsort(-weights, kind="stable").tolist():
        carried, pack = heapq.heappop(with_room)
        packs[pack].append(item)
        if len(packs[pack]) < per_pack:
            heapq.heappush(with_room, (carried + float(weights[item]), pack))
    return packs


def add_replicas(loads: npt.NDArray[np.float64], num_slots: int) -> tuple[list[int], npt.NDArray[np.int64]]:
    """One slot an expert, then each further slot to the expert with the most load a replica. Ties: the lower number.

    Returns:
        `[slots]` expert of each, and `[experts]` replicas of each.
    """
    experts = list(range(len(loads)))
    count = np.ones(len(loads), dtype=np.int64)
    while len(experts) < num_slots:
        expert = int((loads / count).argmax())
        experts.append(expert)
        count[expert] += 1
    return experts, count


def rebalance(loads: npt.NDArray[np.int64], num_slots: int, num_groups: int, num_nodes: int, num_devices: int) -> list[list[int]]:
    """EPLB as published: an expert may be twice on one device.

    The global policy is `num_groups = num_nodes = 1`.

    Args:
        loads: `[experts]`.
        num_slots: in all; a multiple of `num_devices`.
        num_groups: router groups, contiguous experts each; a multiple of `num_nodes`.

    Returns:
        `[devices]` experts in the slots of each, node by node.
    """
    group_size = len(loads) // num_groups
    devices: list[list[int]] = []
    # Step 1: pack groups to nodes.
    for groups in balanced_packing(loads.reshape(num_groups, group_size).sum(axis=1).astype(np.float64), num_nodes):
        experts = [group * group_size + member for group in groups for member in range(group_size)]
        # Step 2: replicate inside the node.
        own = loads[experts].astype(np.float64)
        in_slot, count = add_replicas(own, num_slots // num_nodes)
        # Step 3: pack slots to the node's devices.
        packs = balanced_packing((own / count)[in_slot], num_devices // num_nodes)
        devices += [[experts[in_slot[slot]] for slot in slots] for slots in packs]
    return devices


def resolve_duplicates(loads: npt.NDArray[np.int64], devices: list[list[int]], node_of_device: npt.NDArray[np.int64]) -> list[list[int]]:
    """Keep one copy of an expert a device; each slot so freed goes to the next-best expert that fits.

    Best is the one whose further replica leaves the lowest maximum of device loads, then the flattest; it must be on the
    device's node already, but not on the device. The slot stays empty where the device holds all of those.

    Args:
        loads: `[experts]`.
        devices: `[devices]` experts in the slots of each.
        node_of_device: `[devices]`; all alike where experts may go to any node.
    """
    kept = [list(dict.fromkeys(slots)) for slots in devices]
    holds = np.zeros((len(loads), len(devices)), dtype=bool)
    for device, slots in enumerate(kept):
        holds[slots, device] = True
    nodes, node = np.unique(node_of_device, return_inverse=True)
    allowed = np.stack([holds[:, node_of_device == n].any(axis=1) for n in nodes], axis=1)[:, node]
    for device, slots in enumerate(kept):
        for _ in range(len(devices[device]) - len(slots)):
            fitting = np.flatnonzero(allowed[:, device] & ~holds[:, device])
            if len(fitting):
                expert = _flattest(loads, holds, device, fitting)
                slots.append(expert)
                holds[expert, device] = True
    return kept


def _flattest(loads: npt.NDArray[np.int64], holds: npt.NDArray[np.bool_], device: int, fitting: npt.NDArray[np.int64]) -> int:
    """Which of the fitting experts to add to the device. Ties: the lower number.

    Args:
        holds: `[experts, devices]`.
    """
    count = holds.sum(axis=1)
    share, thinner = loads / np.maximum(count, 1), loads / (count + 1)
    carried = (share[:, None] * holds).sum(axis=0)
    after = carried - holds[fitting] * (share - thinner)[fitting, None]
    after[:, device] += thinner[fitting]
    # Rounded, so that a tie is one whatever the order of the sums.
    keys = np.round((after**2).sum(axis=1), 6), np.round(after.max(axis=1), 6)
    return int(fitting[np.lexsort(keys)[0]])


def eplb(task: PlanningTask, *, policy: str = "auto", num_groups: int | None = None, replica_choice: str = "wrr") -> PlannedLayers:
    """EPLB on the trace's expert loads, with as many slots as `redundancy` (default 1.25) or `slots_per_device` says.

    Slots are equal on all devices, so that `redundancy` is rounded up. Our placements hold an expert once a device at
    most: where EPLB puts two replicas on one device, the second slot goes to the next-best expert that fits
    (`resolve_duplicates`). Replicas share evenly; which one is used, EPLB leaves open.

    Args:
        policy: `global` (replicas anywhere), `hierarchical` (router groups to nodes, replicas inside the node), or
            `auto`: hierarchical where the (equal) nodes divide the groups, as DeepSeek's does.
        num_groups: groups of the model's router (DeepSeek-V3: 8); None = it has none.
        replica_choice: `wrr` or `tar`.

    Raises:
        UsageError: counts that don't divide each other as EPLB needs.
    """
    check_choice("policy", policy, POLICIES)
    check_choice("replica_choice", replica_choice, REPLICA_CHOICES)
    if num_groups is not None and type(num_groups) is not int:
        raise UsageError(f"num_groups {num_groups!r} is not a whole number; give the groups of the model's router, or leave it out")
    groups, nodes = 1 if num_groups is None else num_groups, task.topology.num_nodes
    if policy == "auto":
        divides = num_groups is not None and groups % nodes == 0 and task.topology.devices_per_node is not None
        policy = "hierarchical" if divides else "global"
    if policy == "hierarchical":
        _check_hierarchical(task.num_experts, groups, task.topology)
    else:
        groups, nodes = 1, 1
    node_of_device = task.topology.node_of_device if policy == "hierarchical" else np.zeros(task.num_devices, dtype=np.int64)
    slots = task.equal_slots
    layers = []
    for layer_id, loads in task.loads():
        held = rebalance(loads, slots * task.num_devices, groups, nodes, task.num_devices)
        layers.append(_layer_of_slots(layer_id, resolve_duplicates(loads, held, node_of_device), task.num_experts))
    return PlannedLayers(
        layers=tuple(layers), replica_choice=replica_choice, notes=(f"{policy} policy, {slots} slots a device", *whole_slots(task))
    )


def layer_by_load(
    layer_id: int, topk_ids: npt.NDArray[np.integer[Any]], num_experts: int, topology: Topology, slots: int
) -> LayerPlacement:
    """One layer by the global policy, replicas to be drawn by weight; `slots` of each device."""
    loads = layer_loads(topk_ids, num_experts)
    held = rebalance(loads, slots * topology.num_devices, 1, 1, topology.num_devices)
    anywhere = np.zeros(topology.num_devices, dtype=np.int64)
    layer = _layer_of_slots(layer_id, resolve_duplicates(loads, held, anywhere), num_experts)
    return replace(layer, replica_choice="wrr")


def _layer_of_slots(layer_id: int, slots_of_device: list[list[int]], num_experts: int) -> LayerPlacement:
    devices: list[list[int]] = [[] for _ in range(num_experts)]
    for device, experts in enumerate(slots_of_device):
        for expert in experts:
            devices[expert].append(device)
    return layer_of_devices(layer_id, devices)


def _check_hierarchical(experts: int, groups: int, topology: Topology) -> None:
    if topology.devices_per_node is None:
        raise UsageError(f"eplb's hierarchical policy needs equal nodes, not {topology.shape}; use policy global")
    if groups < 1 or experts % groups:
        raise UsageError(f"{experts} experts don't divide into {groups} groups; use a num_groups that divides {experts}")
    if groups % topology.num_nodes:
        raise UsageError(f"{groups} groups don't divide over {topology.num_nodes} nodes; use policy global, or another num_groups")
