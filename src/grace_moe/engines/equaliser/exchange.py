"""Changes that keep every device's number of slots: replicas of other experts, and swaps inside a node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.engines.equaliser.layer import PRICE, LayerState
from grace_moe.placement import Placement

WORTH_MOVING = 0.01
"""Copies per token that an exchange must be worth in a running engine: below it, moving the weights costs more than it brings."""
WORTH_PLACING = 0.0005
"""The same where nothing is loaded yet."""
MOST_MOVES, MOST_SWAPS = 16, 64


def rebalance(placement: Placement, loads: npt.NDArray[np.integer[Any]]) -> Placement:
    """Follow a running engine's own loads, and leave the rest of the plan alone.

    A replica gives its slot to another expert's on the same device as long as that is worth more, in balance and in tokens kept on
    their node, than it costs; then experts change places between devices of a node, where that is worth moving them: `MOST_MOVES`
    of either kind in a layer, at most. Experts never lose their last replica, and no device changes its number of slots.

    Args:
        loads: `[layers, experts]` tokens that each expert got lately. A layer without any is kept.
    """

    def follow(state: LayerState) -> None:
        _exchange_replicas(state)
        _swap_inside_nodes(state, WORTH_MOVING, MOST_MOVES)

    return _changed(placement, loads, follow)


def even_out(placement: Placement, loads: npt.NDArray[np.integer[Any]]) -> Placement:
    """Swap experts between devices of a node until the devices are even, for engines whose nearest replicas share tokens evenly
    whatever the plan's weights. What crosses between nodes stays the same.

    Args:
        loads: `[layers, experts]` tokens of the trace that was planned on.
    """
    return _changed(placement, loads, lambda state: _swap_inside_nodes(state, WORTH_PLACING, MOST_SWAPS))


def _changed(placement: Placement, loads: npt.NDArray[np.integer[Any]], change: Callable[[LayerState], None]) -> Placement:
    layers = []
    for old, row in zip(placement.layers, loads, strict=True):
        state = LayerState(old, placement.topology, row.astype(float))
        if row.sum():
            change(state)
        layers.append(state.placed())
    return replace(placement, layers=tuple(layers))


def _exchange_replicas(state: LayerState) -> None:
    """Give the slots of replicas to other experts on their devices, as long as it is worth moving the weights."""
    for _ in range(MOST_MOVES):
        best: tuple[float, int, int, int] | None = None
        for device in range(state.devices):
            out = state.least_needed(device)
            if out is None:
                continue
            worth, into = _best_instead(state, device, out)
            if worth > WORTH_MOVING and (best is None or worth > best[0] + 1e-12):
                best = (worth, device, out, into)
        if best is None:
            break
        _, device, out, into = best
        state.holds[out, device], state.holds[into, device] = False, True


def _best_instead(state: LayerState, device: int, out: int) -> tuple[float, int]:
    """What it is worth to give the slot of a replica to the best other expert, and which that is."""
    lost = state.worth_of_dropping(device)[out]
    state.holds[out, device] = False
    gained = PRICE * state.saved_imbalance(device, True) + state.upper_saving(device)
    state.holds[out, device] = True
    gained[state.holds[:, device]] = -np.inf
    into = int(np.argmax(np.round(gained, 12)))
    return float(gained[into] + lost), into


def _swap_inside_nodes(state: LayerState, at_least: float, most: int) -> None:
    """Up to `most` rounds of a swap in each node, as long as each is worth so much."""
    for _ in range(most):
        if not max([_swap_inside(state, node, at_least) for node in range(state.nodes)]):
            break


def _swap_inside(state: LayerState, node: int, at_least: float) -> bool:
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
    if best is None or PRICE * (now - best[0]) <= at_least:
        return False
    _, other, out, into = best
    state.holds[out, [busiest, other]] = [False, True]
    state.holds[into, [busiest, other]] = [True, False]
    return True
