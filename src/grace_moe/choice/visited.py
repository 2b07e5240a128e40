"""The nodes that joint replica choice visits, for every token from every source node: `JointChoiceTable.visited`, compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from grace_moe.choice.joint import ORDER_BITS, JointChoiceTable

MAX_NODES = 64
"""Nodes of a mask: bits of an int64, the sign among them."""


def visits(ids: npt.NDArray[np.int64], table: JointChoiceTable, *, layer_id: int, seed: int) -> npt.NDArray[np.int64]:
    """`[T, N]` mask of the nodes that token t visits from source node n, n among them.

    Args:
        ids: `[T, k]`, -1 = none.
        table: of at most `MAX_NODES` nodes.
    """
    if not len(table.size_S):
        masks = np.empty((len(ids), table.on_node_EN.shape[1]), np.int64)
        _covers(ids, host_masks(table), table.node_order(layer_id, np.arange(len(ids)), seed), masks)
        return masks
    sets = np.argsort(table.size_S, kind="stable")
    order = table.tie_order(layer_id, np.arange(len(ids)), seed)
    masks = np.empty((len(ids), table.members_SN.shape[1]), np.int64)
    _visits(ids, host_masks(table), order, sets, table.size_S[sets], masks)
    return masks


def host_masks(table: JointChoiceTable) -> npt.NDArray[np.int64]:
    """`[E]` mask of the nodes that hold each expert."""
    hosts: npt.NDArray[np.int64] = (table.on_node_EN[:-1] << np.arange(table.on_node_EN.shape[1])).sum(axis=1)
    return hosts


@njit(cache=True, nogil=True)
def _visits(ids: Any, hosts: Any, order: Any, sets: Any, sizes: Any, masks: Any) -> None:
    nodes = masks.shape[1]
    serving = np.empty(len(sets), np.int64)
    for t in range(ids.shape[0]):
        found, smallest = 0, nodes
        for i in range(len(sets)):  # with the source added, none of the sets used is larger than the smallest + 1
            if sizes[i] > smallest + 1:
                break
            serves = True
            for j in range(ids.shape[1]):
                if ids[t, j] >= 0 and hosts[ids[t, j]] & sets[i] == 0:
                    serves = False
                    break
            if serves:
                smallest = min(smallest, sizes[i])
                serving[found] = i
                found += 1
        for source in range(nodes):
            best_size, best_order = nodes + 1, np.int64(0)
            for f in range(found):
                i = serving[f]
                if not sets[i] >> source & 1 or sizes[i] > best_size:
                    continue
                if sizes[i] < best_size or order[t, sets[i]] < best_order:
                    masks[t, source], best_size, best_order = sets[i], sizes[i], order[t, sets[i]]


@njit(cache=True, nogil=True)
def _covers(ids: Any, hosts: Any, order: Any, masks: Any) -> None:
    """As `JointChoiceTable._cover`, of which this is the compiled twin."""
    nodes, k = masks.shape[1], ids.shape[1]
    one = np.int64(1)
    gain = np.empty(nodes, np.int64)
    for t in range(ids.shape[0]):
        needed = np.int64(0)
        for j in range(k):
            if ids[t, j] >= 0 and hosts[ids[t, j]] & (hosts[ids[t, j]] - 1) == 0:
                needed |= hosts[ids[t, j]]
        for source in range(nodes):
            visited = needed | one << source
            while True:
                gain[:] = 0
                left = False
                for j in range(k):
                    if ids[t, j] >= 0 and hosts[ids[t, j]] & visited == 0:
                        left = True
                        for n in range(nodes):
                            gain[n] += hosts[ids[t, j]] >> n & 1
                if not left:
                    break
                best = 0
                for n in range(nodes):
                    gain[n] = (gain[n] << ORDER_BITS) + order[t, n]
                    if gain[n] > gain[best]:
                        best = n
                visited |= one << best
            masks[t, source] = visited
