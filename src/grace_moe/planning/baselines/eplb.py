"""DeepSeek's expert-parallelism load balancer: replicas for the heaviest experts, packed evenly. Load is all it sees.

Source: github.com/deepseek-ai/EPLB, restated by its description; this code is our own.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from grace_moe.errors import UsageError
from grace_moe.placement import REPLICA_CHOICES
from grace_moe.planning.affinity import layer_loads
from grace_moe.planning.request import PlannedLayers, PlanRequest, check_choice, layer_of_devices
from grace_moe.topology import Topology

DEFAULT_REDUNDANCY = 1.25
POLICIES = ("auto", "global", "hierarchical")


def pack(weights: npt.NDArray[np.float64], num_packs: int) -> list[list[int]]:
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
    carried = [0.0] * num_packs
    for item in np.argsort(-weights, kind="stable").tolist():
        index = min((p for p in range(num_packs) if len(packs[p]) < per_pack), key=carried.__getitem__)
        packs[index].append(item)
        carried[index] += float(weights[item])
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


def balance(loads: npt.NDArray[np.int64], num_slots: int, num_groups: int, num_nodes: int, num_devices: int) -> list[list[int]]:
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
    for groups in pack(loads.reshape(num_groups, group_size).sum(axis=1).astype(np.float64), num_nodes):
        experts = [group * group_size + member for group in groups for member in range(group_size)]
        # Step 2: replicate inside the node.
        own = loads[experts].astype(np.float64)
        in_slot, count = add_replicas(own, num_slots // num_nodes)
        # Step 3: pack slots to the node's devices.
        packs = pack((own / count)[in_slot], num_devices // num_nodes)
        devices += [[experts[in_slot[slot]] for slot in slots] for slots in packs]
    return devices


def resolve_duplicates(loads: npt.NDArray[np.int64], devices: list[list[int]], node_of_device: npt.NDArray[np.int64]) -> list[list[int]]:
    """Keep one copy of an expert a device; each slot so freed goes to the next-best expert that fits.

    That is the one with the most load a replica that the device does not hold yet, of those on its node; the slot stays
    empty where the device holds them all.

    Args:
        loads: `[experts]`.
        devices: `[devices]` experts in the slots of each.
        node_of_device: `[devices]`; all alike where experts may go to any node.
    """
    kept = [list(dict.fromkeys(slots)) for slots in devices]
    count = np.bincount([expert for slots in kept for expert in slots], minlength=len(loads))
    on_node = {int(n): {e for d, slots in enumerate(kept) if node_of_device[d] == n for e in slots} for n in set(node_of_device.tolist())}
    for device, slots in enumerate(kept):
        for _ in range(len(devices[device]) - len(slots)):
            fitting = sorted(on_node[int(node_of_device[device])].difference(slots))
            if fitting:
                expert = max(fitting, key=lambda e: (loads[e] / count[e], -e))
                slots.append(expert)
                count[expert] += 1
    return kept


def eplb(
    request: PlanRequest, *, policy: str = "auto", num_groups: int | None = None, replica_choice: str = "wrr"
) -> PlannedLayers:
    """EPLB on the trace's expert loads, with as many slots as `redundancy` (default 1.25) or `slots_per_device` says.

    Slots are equal on all devices, so that `redundancy` is rounded up. Our placements hold an expert once a device at
    most: where EPLB puts two replicas on one device, the second slot goes to the next-best expert that fits. Replicas
    share evenly; which one is used, EPLB leaves open.

    Args:
        policy: `global` (replicas anywhere), `hierarchical` (router groups to nodes, replicas inside the node), or
            `auto`: hierarchical where the nodes divide the groups, as DeepSeek's does.
        num_groups: groups of the model's router (DeepSeek-V3: 8); None = it has none.
        replica_choice: `wrr` or `tar`.

    Raises:
        UsageError: counts that don't divide each other as EPLB needs.
    """
    check_choice("policy", policy, POLICIES)
    check_choice("replica_choice", replica_choice, REPLICA_CHOICES)
    groups, nodes = 1 if num_groups is None else num_groups, request.topology.num_nodes
    if policy == "auto":
        policy = "hierarchical" if num_groups is not None and groups % nodes == 0 else "global"
    if policy == "hierarchical":
        _check_hierarchical(request.num_experts, groups, request.topology)
    else:
        groups, nodes = 1, 1
    node_of_device = request.topology.node_of_device if policy == "hierarchical" else np.zeros(request.num_devices, dtype=np.int64)
    slots = _slots_per_device(request)
    layers = []
    for layer_id, topk_ids in request.layers():
        loads = layer_loads(topk_ids, request.num_experts)
        held = balance(loads, slots * request.num_devices, groups, nodes, request.num_devices)
        devices: list[list[int]] = [[] for _ in loads]
        for device, experts in enumerate(resolve_duplicates(loads, held, node_of_device)):
            for expert in experts:
                devices[expert].append(device)
        layers.append(layer_of_devices(layer_id, devices))
    return PlannedLayers(layers=tuple(layers), replica_choice=replica_choice, notes=(f"{policy} policy, {slots} slots a device",))


def _slots_per_device(request: PlanRequest) -> int:
    experts, devices = request.num_experts, request.num_devices
    if request.slots_per_device is not None:
        return min(request.slots_per_device, experts)
    redundancy = DEFAULT_REDUNDANCY if request.redundancy is None else request.redundancy
    return min(experts, int(np.ceil(redundancy * experts / devices - 1e-9)))


def _check_hierarchical(experts: int, groups: int, topology: Topology) -> None:
    if topology.devices_per_node is None:
        raise UsageError(f"eplb's hierarchical policy needs equal nodes, not {topology.shape}; use policy global")
    if groups < 1 or experts % groups:
        raise UsageError(f"{experts} experts don't divide into {groups} groups; use a num_groups that divides {experts}")
    if groups % topology.num_nodes:
        raise UsageError(f"{groups} groups don't divide over {topology.num_nodes} nodes; use policy global, or another num_groups")
