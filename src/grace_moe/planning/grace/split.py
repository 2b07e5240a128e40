"""How each expert's tokens divide among its replicas, so that devices come out even.

What joint choice may do with a pair depends only on which visited nodes host the expert: the demand counts pairs by
expert and that mask, over every source node. A replica's part of a cell is its weight over the weights of the replicas there; weights move
against the load of their device until loads are even. It is an entropic solution of the min-max flow: no replica is starved
without need, which also is what holds on routing not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

from grace_moe.choice.cover import host_masks, visited_nodes
from grace_moe.choice.joint import MAX_EXACT_NODES, JointChoiceTable
from grace_moe.placement import MAX_NODE_PRICE

_ROUNDS = 200
_PRICE_ROUNDS = 8
_FEW_NODES = 4
_PRICE_TOKENS = 1500
"""Tokens that prices are found on where nodes are more than a few."""
_FLOOR = 0.02
"""Smallest weight of a replica, against the largest of its expert."""


Cells: TypeAlias = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]
"""Demand: `[C, 2]` expert, and mask of the visited nodes that hold it; `[C]` pairs."""


def demand(
    ids: npt.NDArray[np.int64], masks: npt.NDArray[np.int64], hosts: npt.NDArray[np.int64], sources: npt.NDArray[np.float64]
) -> Cells:
    """Pairs by expert and the nodes that its replica may be on; in ascending order of both.

    Args:
        ids: `[T, k]`, -1 = none.
        masks: `[T, N]` nodes that each token visits from each source node.
        hosts: `[E]` mask of the nodes that hold each expert.
        sources: `[T, N]` chance that each token comes from each node.
    """
    nodes = masks.shape[1]
    chosen = ids >= 0
    experts = ids[chosen]
    if nodes <= MAX_EXACT_NODES:
        cells = np.zeros(len(hosts) << nodes)
        for node in range(nodes):
            visited = np.broadcast_to(masks[:, node, None], ids.shape)[chosen]
            weight = np.broadcast_to(sources[:, node, None], ids.shape)[chosen]
            cells += np.bincount((experts << nodes) + (hosts[experts] & visited), weights=weight, minlength=len(cells))
        where = np.flatnonzero(cells)
        return np.stack([where >> nodes, where & ((1 << nodes) - 1)], axis=1), cells[where]
    # Too many masks to count all: those that occur, and most experts have but one.
    alone = hosts & (hosts - 1) == 0
    token = np.nonzero(chosen)[0]
    one = alone[experts]
    pairs = np.bincount(experts[one], weights=sources[token[one]].sum(axis=1), minlength=len(hosts))
    expert, mask = np.flatnonzero(alone), hosts[alone]
    some = np.repeat(experts[~one], nodes)
    seen = hosts[some] & masks[token[~one]].ravel()
    order = np.lexsort((seen, some))
    some, seen, weight = some[order], seen[order], sources[token[~one]].ravel()[order]
    first = np.flatnonzero(np.append(True, (some[1:] != some[:-1]) | (seen[1:] != seen[:-1]))) if len(some) else np.zeros(0, np.int64)
    expert, mask = np.concatenate([expert, some[first]]), np.concatenate([mask, seen[first]])
    counts = np.concatenate([pairs[alone], np.add.reduceat(weight, first) if len(some) else np.zeros(0)])
    order = np.lexsort((mask, expert))
    order = order[counts[order] > 0]
    return np.stack([expert[order], mask[order]], axis=1), counts[order]


def balance(
    cells: Cells,
    devices: npt.NDArray[np.int64],
    node_of_device: npt.NDArray[np.int64],
    speed: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """`[E, R]` weights of the replicas that even out device loads (over speed), 0 where there is no replica; and the loads `[D]`.

    Args:
        cells: from `demand`.
        devices: `[E, R]`, -1 = no replica.
    """
    weights = np.where(devices >= 0, 1.0, 0.0)
    where, counts = cells
    load = np.zeros(len(speed))
    if len(where):
        _balance(where, counts, devices, node_of_device, speed / speed.mean(), weights, load)
    return weights, load


def node_prices(
    ids: npt.NDArray[np.int64],
    table_of: Callable[[tuple[float, ...]], JointChoiceTable],
    nodes_of_expert: npt.NDArray[np.int64],
    capacity: npt.NDArray[np.float64],
    sources: npt.NDArray[np.float64],
    *,
    layer_id: int,
    seed: int,
    thin: int = 1,
) -> tuple[tuple[float, ...], Cells, npt.NDArray[np.float64]]:
    """Prices of the nodes under which ties of the cover even out node loads; with the demand and the weights over nodes.

    Args:
        ids: `[T, k]`, -1 = none.
        table_of: the joint choice table under given node prices.
        nodes_of_expert: `[E, R]` that hold each expert, -1 = none.
        capacity: `[N]` share of all devices' speed.
        sources: `[T, N]` chance that each token comes from each node.
        thin: prices are found on every so manieth token; the demand is that of all.
    """
    nodes = len(capacity)
    price, least = np.zeros(nodes), np.inf
    found: tuple[tuple[float, ...], Cells, npt.NDArray[np.float64]]
    if nodes > _FEW_NODES:  # with many sources fewer tokens tell as much
        thin = max(thin, len(ids) // _PRICE_TOKENS)
    thin = 1 if nodes <= 2 else thin

    def divided(prices: tuple[float, ...], step: int) -> tuple[Cells, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        table = table_of(prices)
        cells = demand(ids[::step], visited_nodes(ids[::step], table, layer_id=layer_id, seed=seed), host_masks(table), sources[::step])
        return cells, *balance(cells, nodes_of_expert, np.arange(nodes), capacity)

    for step in range(_PRICE_ROUNDS if nodes > 2 else 1):  # two nodes know no ties: the source's is in every set
        prices = tuple(round(float(p), 4) for p in price)
        cells, weights, load = divided(prices, thin)
        over = load / max(load.mean(), 1e-12) - 1
        if over.max() < least:
            least, found = over.max(), (prices, cells, weights)
        price = price + over * 8 / (1 + step / 2)
        price = np.clip(price - price.min(), 0, MAX_NODE_PRICE)
    if thin > 1:
        cells, weights, _ = divided(found[0], 1)
        return found[0], cells, weights
    return found


@njit(cache=True, nogil=True)
def _balance(where: Any, count: Any, devices: Any, node_of_device: Any, speed: Any, weights: Any, best_load: Any) -> None:
    experts, replicas = devices.shape
    num_devices = speed.shape[0]
    load = np.empty(num_devices)
    best = weights.copy()
    best_max = 1e300
    mean = count.sum() / num_devices
    for r in range(_ROUNDS):
        load[:] = 0
        for c in range(where.shape[0]):
            e, mask = where[c, 0], where[c, 1]
            total = 0.0
            for i in range(replicas):
                d = devices[e, i]
                if d >= 0 and mask >> node_of_device[d] & 1:
                    total += weights[e, i]
            for i in range(replicas):
                d = devices[e, i]
                if d >= 0 and mask >> node_of_device[d] & 1:
                    load[d] += count[c] * weights[e, i] / total
        for d in range(num_devices):
            load[d] /= speed[d]
        if load.max() < best_max:
            best_max = load.max()
            best[:] = weights
            best_load[:] = load
        if load.max() < 1.0005 * mean:
            break
        power = 1.0 if r < _ROUNDS // 2 else 0.3
        for e in range(experts):
            top = 0.0
            for i in range(replicas):
                if devices[e, i] >= 0:
                    weights[e, i] *= (mean / max(load[devices[e, i]], 0.05 * mean)) ** power
                    top = max(top, weights[e, i])
            for i in range(replicas):
                if devices[e, i] >= 0:
                    weights[e, i] = max(weights[e, i] / top, _FLOOR)
    weights[:] = best
