"""Swaps of experts inside a node, which keep every device's number of slots and what crosses between nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.engines.equaliser.layer import PRICE, LayerState
from grace_moe.placement import Placement

WORTH_PLACING = 0.0005
"""Copies per token that a swap must be worth where nothing is loaded yet."""
MOST_SWAPS = 64


def even_out(placement: Placement, loads: npt.NDArray[np.integer[Any]]) -> Placement:
    """Swap experts between devices of a node until the devices are even, for engines whose nearest replicas share tokens evenly
    whatever the plan's weights. What crosses between nodes stays the same.

    Args:
        loads: `[layers, experts]` tokens of the trace that was planned on.
    """
    layers = []
    for old, row in zip(placement.layers, loads, strict=True):
        state = LayerState(old, placement.topology, row.astype(float))
        if row.sum():
            _swap_inside_nodes(state)
        layers.append(state.placed())
    return replace(placement, layers=tuple(layers))


def _swap_inside_nodes(state: LayerState) -> None:
    """Rounds of a swap in each node, as long as any is worth it."""
    for _ in range(MOST_SWAPS):
        if not max([_swap_inside(state, node) for node in range(state.nodes)]):
            break


def _swap_inside(state: LayerState, node: int) -> bool:
    """Swap an expert of the node's busiest device with one of another there, where that is worth it. The node holds the same
    experts as before, and each replica the same tokens: nothing changes between nodes."""
    devices = np.flatnonzero(state.node == node)
    of_replica = state.loads[:, None] * state.shares(state.holds)
    load = of_replica.sum(axis=0)
    busiest = devices[int(np.argmax((load / state.even)[devices]))]
    now, best = float(state.imbalance(load)), None
    for other in devices[devices != busiest]:
        give = np.flatnonzero(state.holds[:, busiest] & ~state.holds[:, other])
        take = np.flatnonzero(state.holds[:, other] & ~state.holds[:, busiest])
        if not give.size or not take.size:
            continue
        moved = of_replica[give, busiest][:, None] - of_replica[take, other][None, :]
        then = np.broadcast_to(load, (*moved.shape, len(load))).copy()
        then[..., busiest] -= moved
        then[..., other] += moved
        imbalance = np.round(state.imbalance(then), 12)
        at = np.unravel_index(int(np.argmin(imbalance)), imbalance.shape)
        if best is None or imbalance[at] < best[0]:
            best = (float(imbalance[at]), int(other), int(give[at[0]]), int(take[at[1]]))
    if best is None or PRICE * (now - best[0]) <= WORTH_PLACING:
        return False
    _, other, out, into = best
    state.holds[out, [busiest, other]] = [False, True]
    state.holds[into, [busiest, other]] = [True, False]
    return True
