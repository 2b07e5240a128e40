"""Which replicas one rank's tokens take, as a table of turns: for engines that let each rank have its own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from grace_moe.placement import LayerPlacement
from grace_moe.topology import Topology


def choices_of_rank(layer: LayerPlacement, slots: npt.NDArray[np.int32], topology: Topology, rank: int, width: int) -> list[list[int]]:
    """Per expert, the slots that a rank's tokens take turns in: its own replica, else those on its node, else all; each as often,
    of at most `width` turns, as its weight says (to the nearest).

    Args:
        slots: `[slots]` expert in each, rank-major.
    """
    node, per_rank = topology.node_of_device, len(slots) // topology.num_devices
    slot_of: dict[tuple[int, int], int] = {(int(expert), slot // per_rank): slot for slot, expert in reversed(list(enumerate(slots)))}
    turns = []
    for expert, (devices, weights) in enumerate(zip(layer.devices_of_expert, layer.replica_weights, strict=True)):
        pairs = list(zip(devices, weights, strict=True))
        near = [p for p in pairs if p[0] == rank] or [p for p in pairs if node[p[0]] == node[rank]] or pairs
        total = sum(weight for _, weight in near)
        shares = [weight / total if total > 0 else 1 / len(near) for _, weight in near]
        counts = [1] if len(near) == 1 else _turns(shares, width)
        turns.append([slot_of[expert, device] for (device, _), count in zip(near, counts, strict=True) for _ in range(count)])
    return turns


def _turns(shares: list[float], width: int) -> list[int]:
    """Whole numbers in the ratio of the shares that sum to `width`, fewer where all have a common divisor; 0 only for a share of 0."""
    ends = np.round(np.cumsum(shares) * width).astype(int)
    counts = np.diff(ends, prepend=0)
    counts[(counts == 0) & (np.array(shares) > 0)] = 1
    if not counts.sum():
        return [1] * len(shares)
    divisor = int(np.gcd.reduce(counts))
    return [int(count) // divisor for count in counts]
