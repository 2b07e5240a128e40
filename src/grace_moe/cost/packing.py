"""Replicas and packing by load alone, for many layers at once: what EPLB does without groups of experts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def replica_counts(loads: Floats, slots: int) -> Ints:
    """`[layers, experts]` replicas: the expert with the most load a replica gets the next one, until the slots are full.

    Args:
        loads: `[layers, experts]`.
        slots: at least the experts.
    """
    counts = np.ones(loads.shape, dtype=np.int64)
    each = loads.astype(float).copy()
    rows = np.arange(len(loads))
    for _ in range(slots - loads.shape[1]):
        busiest = each.argmax(axis=1)
        counts[rows, busiest] += 1
        each[rows, busiest] = loads[rows, busiest] / counts[rows, busiest]
    return counts


def packed(loads: Floats, devices: int) -> Ints:
    """`[layers, slots]` device of each slot: the largest load first, each on the emptiest device with a slot left.

    Args:
        loads: `[layers, slots]`; slots are a multiple of the devices.
    """
    layers, slots = loads.shape
    room, rows = slots // devices, np.arange(len(loads))
    device, filled = np.empty(loads.shape, dtype=np.int64), np.zeros((layers, devices), dtype=np.int64)
    total = np.zeros((layers, devices))
    for slot in np.argsort(-loads, axis=1, kind="stable").T:
        chosen = total.argmin(axis=1)
        device[rows, slot] = chosen
        filled[rows, chosen] += 1
        total[rows, chosen] = np.where(filled[rows, chosen] < room, total[rows, chosen] + loads[rows, slot], np.inf)
    return device
