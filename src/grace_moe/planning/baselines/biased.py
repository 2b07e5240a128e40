"""The hottest experts on every device: the `biased` placement of ROCm ATOM."""

import numpy as np
import numpy.typing as npt

from grace_moe.planning.groups.contiguous import contiguous_groups
from grace_moe.planning.groups.even_layers import layer_of_devices
from grace_moe.planning.task import PlannedLayers, PlanningTask


def biased_devices(loads: npt.NDArray[np.int64], num_devices: int, num_hot: int) -> list[tuple[int, ...]]:
    """Per expert, its devices: all for the `num_hot` heaviest, contiguous blocks for the rest. Ties: the lower number.

    Args:
        loads: `[experts]`.
    """
    hot = np.argsort(-loads, kind="stable")[:num_hot].tolist()
    rest = [expert for expert in range(len(loads)) if expert not in set(hot)]
    devices: list[tuple[int, ...]] = [()] * len(loads)
    for device, block in enumerate(contiguous_groups(len(rest), num_devices)):
        for position in block:
            devices[rest[position]] = (device,)
    for rank, expert in enumerate(hot):
        primary = rank % num_devices
        devices[expert] = (primary, *(device for device in range(num_devices) if device != primary))
    return devices


def biased(task: PlanningTask) -> PlannedLayers:
    """As many of the heaviest experts on every device as `redundancy` (default 1.25) or `slots_per_device` allows."""
    num_hot = _num_hot(task)
    notes: tuple[str, ...] = ()
    if not num_hot:
        notes = (f"no expert is replicated: a copy on all {task.num_devices} devices needs more slots than allowed",)
    layers = tuple(layer_of_devices(layer_id, biased_devices(loads, task.num_devices, num_hot)) for layer_id, loads in task.loads())
    return PlannedLayers(layers=layers, replica_choice="tar", notes=notes)


def _num_hot(task: PlanningTask) -> int:
    experts, devices = task.num_experts, task.num_devices
    if devices == 1:
        return 0
    if task.slots_per_device is not None:
        fits = [hot for hot in range(experts + 1) if hot + -(-(experts - hot) // devices) <= task.slots_per_device]
        return max(fits)
    return int((task.redundancy_allowed - 1) * experts / (devices - 1) + 1e-9)
