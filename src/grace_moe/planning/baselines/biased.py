"""The hottest experts on every device: the `biased` placement of ROCm ATOM."""

import numpy as np
import numpy.typing as npt

from grace_moe.planning.baselines.linear import contiguous_groups
from grace_moe.planning.groups.affinity import layer_loads
from grace_moe.planning.request import PlannedLayers, PlanRequest, layer_of_devices

DEFAULT_REDUNDANCY = 1.25
"""As in `eplb`, so that the two compare at the same memory."""


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


def biased(request: PlanRequest) -> PlannedLayers:
    """As many of the heaviest experts on every device as `redundancy` (default 1.25) or `slots_per_device` allows."""
    num_hot = _num_hot(request)
    notes: tuple[str, ...] = ()
    if not num_hot:
        notes = (f"no expert is replicated: a copy on all {request.num_devices} devices needs more slots than allowed",)
    layers = tuple(
        layer_of_devices(layer_id, biased_devices(layer_loads(ids, request.num_experts), request.num_devices, num_hot))
        for layer_id, ids in request.layers()
    )
    return PlannedLayers(layers=layers, replica_choice="tar", notes=notes)


def _num_hot(request: PlanRequest) -> int:
    experts, devices = request.num_experts, request.num_devices
    if devices == 1:
        return 0
    if request.slots_per_device is not None:
        fits = [hot for hot in range(experts + 1) if hot + -(-(experts - hot) // devices) <= request.slots_per_device]
        return max(fits)
    redundancy = DEFAULT_REDUNDANCY if request.redundancy is None else request.redundancy
    return int((redundancy - 1) * experts / (devices - 1) + 1e-9)
