"""Replicas for the heaviest device group, the loads they are predicted to leave, and polling weights.

docs/method.md#replicate (Eq. 3), #predict-load (Eq. 4), #online-phase (WRR).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grace_moe.planning.groups.partition import Groups


@dataclass(frozen=True, kw_only=True)
class Replication:
    """Where one layer's experts are, replicas included."""

    devices_of_expert: tuple[tuple[int, ...], ...]
    """Per expert, its device (the primary), then the hosts of its secondary replicas."""
    predicted_loads: npt.NDArray[np.float64]
    """`[devices]` pairs each device is predicted to compute; the sum is the experts' load."""
    limited: bool = False
    """Whether the slot limit left out a replica, or sent it to another host."""


def num_replicas(group_loads: npt.NDArray[np.int64]) -> int:
    """Eq. 3: secondary replicas of each hot expert, `min(max(1, floor(W_max / mean(W))), D - 1)`.

    Args:
        group_loads: `[devices]` W.
    """
    num_devices, total = len(group_loads), int(group_loads.sum())
    skew = int(group_loads.max()) * num_devices // total if total else 1
    return min(max(1, skew), num_devices - 1)


def hot_experts(loads: npt.NDArray[np.int64], group: Sequence[int], replicas: int) -> tuple[int, ...]:
    """The smallest prefix of a group's experts, heaviest first, that carries more than `W n / (1 + n)` of its load W.

    Args:
        loads: `[experts]` w.
        group: the experts of the heaviest group.
        replicas: n, secondary replicas of each hot expert.
    """
    ranked = sorted(group, key=lambda expert: (-int(loads[expert]), expert))
    carried = np.cumsum(loads[ranked])
    enough = np.flatnonzero(carried * (1 + replicas) > carried[-1] * replicas)
    return tuple(ranked[: int(enough[0]) + 1]) if len(enough) else ()


def replicate(
    loads: npt.NDArray[np.int64], groups: Groups, *, replicas: int | None = None, limits: Sequence[int] | None = None
) -> Replication:
    """Give the hot experts of the heaviest group secondary replicas on the least-loaded devices.

    With a slot limit, hosts are the least-loaded devices that have a slot left, and each takes the hottest experts that
    fit. Ties go to the lower device number.

    Args:
        loads: `[experts]` w.
        groups: `[devices]` the experts of each device.
        replicas: secondary replicas of each hot expert, where Eq. 3 isn't to decide; 0 = none. At most D - 1 are made.
        limits: `[devices]` most experts that each device may hold.
    """
    sizes = np.array([len(group) for group in groups])
    group_loads = np.array([int(loads[list(group)].sum()) for group in groups], dtype=np.int64)
    wanted = num_replicas(group_loads) if replicas is None else min(replicas, len(groups) - 1)
    heaviest = int(group_loads.argmax())
    hot = hot_experts(loads, groups[heaviest], wanted) if wanted else ()
    candidates = [int(device) for device in np.argsort(group_loads, kind="stable") if device != heaviest]
    room = np.full(len(groups), len(loads)) if limits is None else np.asarray(limits) - sizes
    hosts = [device for device in candidates if room[device] > 0][:wanted]

    devices: list[list[int]] = [[] for _ in loads]
    for device, group in enumerate(groups):
        for expert in group:
            devices[expert].append(device)
    for host in hosts:
        for expert in hot[: room[host]]:
            devices[expert].append(host)
    placed = tuple(tuple(row) for row in devices)
    whole = hosts == candidates[:wanted] and all(room[host] >= len(hot) for host in hosts)
    return Replication(devices_of_expert=placed, predicted_loads=predict_loads(loads, placed, len(groups)), limited=bool(hot) and not whole)


def predict_loads(loads: npt.NDArray[np.int64], devices_of_expert: Sequence[Sequence[int]], num_devices: int) -> npt.NDArray[np.float64]:
    """Eq. 4: `[devices]` load where each expert's is shared evenly by its instances.

    With n replicas of every hot expert this is Eq. 4's `W_max - W_r + W_p` and `W_i + W_p`, `W_p = W_r / (n + 1)`.
    """
    predicted = np.zeros(num_devices)
    for expert, devices in enumerate(devices_of_expert):
        predicted[list(devices)] += loads[expert] / len(devices)
    return predicted


def predict_loads_as_printed(
    loads: npt.NDArray[np.int64], devices_of_expert: Sequence[Sequence[int]], num_devices: int
) -> npt.NDArray[np.float64]:
    """Eq. 4 with `W_p = W_max / (n + 1)`, as its formula is printed: `[devices]`; the sum is more than the experts' load.

    n is the number of devices that host secondary replicas, all of the heaviest group's experts.
    """
    predicted = np.zeros(num_devices)
    for expert, devices in enumerate(devices_of_expert):
        predicted[devices[0]] += loads[expert]
    hot = [expert for expert, devices in enumerate(devices_of_expert) if len(devices) > 1]
    if hot:
        hosts = sorted({device for expert in hot for device in devices_of_expert[expert][1:]})
        heaviest = devices_of_expert[hot[0]][0]
        share = predicted[heaviest] / (len(hosts) + 1)
        predicted[heaviest] += share - loads[hot].sum()
        predicted[hosts] += share
    return predicted


def polling_weights(devices_of_expert: Sequence[Sequence[int]], predicted_loads: npt.NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    """Per expert, `1 / predicted load` of each replica's device, normalised; devices without load share it all evenly."""
    weights = []
    for devices in devices_of_expert:
        predicted = predicted_loads[list(devices)]
        inverse = (predicted <= 0).astype(float) if (predicted <= 0).any() else 1.0 / predicted
        weights.append(tuple(float(share) for share in inverse / inverse.sum()))
    return tuple(weights)
