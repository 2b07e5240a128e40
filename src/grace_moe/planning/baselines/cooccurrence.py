"""Greedy growth by co-occurrence under a load cap: in the manner of a TensorRT-LLM side branch."""

import numpy as np
import numpy.typing as npt

from grace_moe.errors import UsageError
from grace_moe.planning.groups.affinity import affinity_matrix, layer_loads
from grace_moe.planning.groups.contiguous import even_sizes
from grace_moe.planning.groups.even_layers import layer_of_groups
from grace_moe.planning.groups.partition import Groups, as_groups
from grace_moe.planning.notes import no_replicas
from grace_moe.planning.option_values import is_within
from grace_moe.planning.task import PlannedLayers, PlanningTask


def cooccurrence_groups(affinity: npt.NDArray[np.int64], loads: npt.NDArray[np.int64], num_devices: int, *, alpha: float = 0.8) -> Groups:
    """Groups whose sizes differ by at most one.

    1. Each device in turn opens with the heaviest expert not yet placed. It then takes the expert that co-occurs most with its group, as
       long as it stays within `alpha` of the mean load and `alpha` of its slots.
    2. The rest, heaviest first, go to the lightest device with a slot left.

    Ties go to the lower number.

    Args:
        affinity: `[experts, experts]`.
        loads: `[experts]`.
        alpha: 0 (load only) to 1 (co-occurrence as far as it goes).
    """
    sizes = even_sizes(len(loads), num_devices)
    cap = alpha * float(loads.sum()) / num_devices
    free = np.ones(len(loads), dtype=bool)
    groups: list[list[int]] = [[] for _ in sizes]
    carried = np.zeros(num_devices, dtype=np.int64)

    def put(expert: int, device: int) -> None:
        groups[device].append(expert)
        carried[device] += loads[expert]
        free[expert] = False

    for device, size in enumerate(sizes):
        while len(groups[device]) + 1 <= alpha * size:
            candidates = np.flatnonzero(free & (carried[device] + loads <= cap))
            if not len(candidates):
                break
            wanted = affinity[:, groups[device]].sum(axis=1) if groups[device] else loads
            put(int(candidates[wanted[candidates].argmax()]), device)
    for expert in np.argsort(-loads, kind="stable"):
        if free[expert]:
            room = [device for device, size in enumerate(sizes) if len(groups[device]) < size]
            put(int(expert), min(room, key=lambda device: (int(carried[device]), device)))
    return as_groups(groups)


def cooccurrence(task: PlanningTask, *, alpha: float = 0.8) -> PlannedLayers:
    """Co-occurrence up to a share `alpha` of load and slots, balance for the rest. `redundancy` has no effect.

    Raises:
        UsageError: alpha outside 0..1.
    """
    if not is_within(alpha, 0, 1):
        raise UsageError(f"alpha {alpha!r} is out of range; use 0 (load only) to 1 (co-occurrence only)")
    experts = task.num_experts
    layers = tuple(
        layer_of_groups(
            layer_id,
            cooccurrence_groups(affinity_matrix(ids, experts), layer_loads(ids, experts), task.num_devices, alpha=alpha),
            experts,
        )
        for layer_id, ids in task.layers()
    )
    return PlannedLayers(layers=layers, notes=no_replicas(task, "cooccurrence"))
