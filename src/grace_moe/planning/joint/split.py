"""How each expert's tokens divide among its replicas, so that devices come out even.

What joint choice may do with a pair depends only on which visited nodes host the expert: the demand `[E, 2^N]` counts pairs by
that mask, over every source node. A replica's part of a cell is its weight over the weights of the replicas there; weights move
against the load of their device until loads are even. It is an entropic solution of the min-max flow: no replica is starved
without need, which also is what holds on routing not seen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from grace_moe.planning.joint_choice import JointChoiceTable

_ROUNDS = 200
_FLOOR = 0.02
"""Smallest weight of a replica, against the largest of its expert."""


def demand(
    ids: npt.NDArray[np.int64], table: JointChoiceTable, hosts: npt.NDArray[np.int64], nodes: int, *, layer_id: int, seed: int
) -> npt.NDArray[np.float64]:
    """`[E, 2^N]` pairs whose replicas may be on exactly the nodes of the mask, mean over source nodes.

    Args:
        ids: `[T, k]`, -1 = none.
        table: of any placement with these hosts; only its nodes matter.
        hosts: `[E]` mask of the nodes that hold each expert.
    """
    experts = len(hosts)
    cells = np.zeros(experts << nodes)
    tokens = np.arange(len(ids))
    chosen = ids >= 0
    bits = 1 << np.arange(nodes)
    for node in range(nodes):
        visited = table.visited(layer_id, ids, np.full(len(ids), node), tokens + node * len(ids), seed)
        mask = (visited * bits).sum(axis=1)
        cell = (np.where(chosen, ids, 0) << nodes) + (hosts[ids] & mask[:, None])
        cells += np.bincount(cell[chosen], minlength=len(cells))
    return cells.reshape(experts, 1 << nodes) / nodes


def balance(
    cells: npt.NDArray[np.float64],
    devices: npt.NDArray[np.int64],
    node_of_device: npt.NDArray[np.int64],
    speed: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """`[E, R]` weights of the replicas that even out device loads (over speed); 0 where there is no replica.

    Args:
        cells: from `demand`.
        devices: `[E, R]`, -1 = no replica.
    """
    weights = np.where(devices >= 0, 1.0, 0.0)
    where = np.argwhere(cells > 0)
    if not len(where):
        return weights
    _balance(where, cells[cells > 0], devices, node_of_device, speed / speed.mean(), weights)
    return weights


@njit(cache=True, nogil=True)
def _balance(where: Any, count: Any, devices: Any, node_of_device: Any, speed: Any, weights: Any) -> None:
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
