"""Minimum cover, compiled: the fewest nodes that hold a replica of each of a token's experts.

The search asks how many copies a token costs over all source nodes (`token_cost`); whoever replays a placement asks which nodes the
token visits from each of them (`visited_nodes`). Both read the same feasibility sets (`node_sets`). The runtime uses the array form for
NumPy and torch, `JointChoiceTable.visited`, which is the reference.

With K the size of the smallest feasible set, a source inside some smallest set sends K - 1 copies, any other K; summed over
all sources: N * K - |union of the smallest sets|. This is what joint replica choice will send (`choice.joint`).
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from grace_moe.choice.joint import ORDER_BITS, JointChoiceTable, host_masks
from grace_moe.choice.node_sets import NodeSets, node_sets
from grace_moe.compiled import hot_part, kernel

Ids: TypeAlias = npt.NDArray[np.int32]
Ints: TypeAlias = npt.NDArray[np.int64]
Words: TypeAlias = npt.NDArray[np.uint64]


def padded(ids: npt.NDArray[np.integer], experts: int) -> Ids:
    """`[T, k]` choices with `experts` for "none", as kernels take them."""
    return np.where(ids < 0, experts, ids).astype(np.int32)


def feasibility(hosts: Ints, sets: NodeSets) -> Words:
    """`[E + 1, W]` sets of nodes that serve each expert, of the masks `[E]` of the nodes that hold it; every set serves "none"."""
    return np.concatenate([sets.meets[hosts], np.full((1, sets.meets.shape[1]), ~np.uint64(0))])


def visited_nodes(ids: Ints, table: JointChoiceTable, *, layer_id: int, seed: int) -> Ints:
    """`[T, N]` mask of the nodes that token t visits from source node n, n among them.

    Args:
        ids: `[T, k]`, -1 = none.
        table: of at most `MAX_MASK_NODES` nodes.
    """
    experts, nodes = len(table.on_node_EN) - 1, table.on_node_EN.shape[1]
    masks = np.empty((len(ids), nodes), np.int64)
    hosts = host_masks(table)
    if len(table.size_S):
        sets = node_sets(nodes)
        order = table.tie_order(layer_id, np.arange(len(ids)), seed)
        _exact_sets(padded(ids, experts), feasibility(hosts, sets), order, sets, masks)
    else:
        order = table.node_order(layer_id, np.arange(len(ids)), seed)
        _greedy_sets(padded(ids, experts), np.append(hosts, -1), order, masks)
    return masks


def token_costs(ids: Ids, pins: Ints, hosts: Ints, sets: NodeSets) -> npt.NDArray[np.uint8]:
    """`[T]` what each token costs by `token_cost`.

    Args:
        ids: `[T, k]`, `E` = none; pins: `[T]`; hosts: `[E]` mask of the nodes that hold each expert.
    """
    feasible, costs = feasibility(hosts, sets), np.empty(len(ids), np.uint8)
    _count_copies(ids, pins, feasible, np.empty(feasible.shape[1], np.uint64), sets, costs)
    return costs


def tokens_of_experts(ids: Ids, experts: int) -> tuple[Ints, npt.NDArray[np.int32]]:
    """Where each expert occurs: `members[starts[e] : starts[e + 1]]` are the tokens of expert e.

    Args:
        ids: `[T, k]`, `experts` = none.
    """
    flat = ids.reshape(-1)
    token = np.repeat(np.arange(len(ids)), ids.shape[1])
    order = np.argsort(flat, kind="stable")
    order = order[: int((flat < experts).sum())]
    starts = np.zeros(experts + 1, np.int64)
    np.cumsum(np.bincount(flat[order], minlength=experts), out=starts[1:])
    return starts, token[order].astype(np.int32)


@hot_part
def token_cost(ids: Ids, token: int | np.int64, feasible: Words, pin: int | np.int64, known: Words, sets: NodeSets) -> int:
    """Copies summed over all sources, of one token; of a pinned one, N times those from its node.

    Args:
        ids: `[T, k]`, `E` = none; feasible: `[E + 1, W]` from `feasibility`; known: `[W]` to work in.
        pin: the only source node of the token, -1 = all.
    """
    smallest = _smallest(ids, token, feasible, known, sets)
    size, union = smallest >> 8, smallest & 255
    nodes = sets.holds.shape[0]
    if pin >= 0:
        return int(nodes * (size - (union >> pin & 1)))
    sources = 0
    while union:
        union &= union - 1
        sources += 1
    return int(nodes * size - sources)


@hot_part
def _serving(ids: Ids, token: int | np.int64, feasible: Words, word: int) -> np.uint64:
    """One word of the token's own feasibility set."""
    serving = feasible[ids[token, 0], word]
    for j in range(1, ids.shape[1]):
        serving &= feasible[ids[token, j], word]
    return np.uint64(serving)


@hot_part
def _smallest(ids: Ids, token: int | np.int64, feasible: Words, known: Words, sets: NodeSets) -> int:
    """Size K of the token's smallest feasible sets, times 256, and the mask of their union."""
    if sets.small.shape[0]:
        return int(sets.small[_serving(ids, token, feasible, 0)])
    nodes = sets.holds.shape[0]
    ready = 0  # words of the token's feasibility set that are known; small sets are in the first
    for size in range(1, nodes + 1):
        first, last = sets.words[size, 0], sets.words[size, 1]
        hit = np.uint64(0)
        for w in range(first, last):
            if w == ready:
                known[w] = _serving(ids, token, feasible, w)
                ready += 1
            hit |= known[w] & sets.level[size, w]
        if hit:
            union = 0
            for n in range(nodes):
                for w in range(first, last):
                    if known[w] & sets.level[size, w] & sets.holds[n, w]:
                        union |= 1 << n
                        break
            return int(size << 8 | union)
    return int(nodes << 8)


@kernel
def _count_copies(ids: Ids, pins: Ints, feasible: Words, known: Words, sets: NodeSets, costs: npt.NDArray[np.uint8]) -> None:
    for t in range(len(costs)):
        costs[t] = token_cost(ids, t, feasible, pins[t], known, sets)


@kernel
def _exact_sets(ids: Ids, feasible: Words, order: Ints, sets: NodeSets, masks: Ints) -> None:
    """Fill `masks` `[T, N]`: of the smallest sets that hold the source and serve the token, the one lowest in `order` `[T, 2^N]`."""
    nodes = masks.shape[1]
    serving = np.empty(len(sets.masks), np.int64)
    for t in range(ids.shape[0]):
        found, smallest = 0, nodes
        word = np.uint64(0)
        for i in range(len(sets.masks)):  # with the source added, none of the sets used is larger than the smallest + 1
            if i & 63 == 0:
                word = _serving(ids, t, feasible, i >> 6)
            if sets.sizes[i] > smallest + 1:
                break
            if word >> np.uint64(i & 63) & np.uint64(1):
                smallest = min(smallest, sets.sizes[i])
                serving[found] = i
                found += 1
        for source in range(nodes):
            best_size, best_order = nodes + 1, np.int64(0)
            for f in range(found):
                i = serving[f]
                mask = sets.masks[i]
                if not mask >> source & 1 or sets.sizes[i] > best_size:
                    continue
                if sets.sizes[i] < best_size or order[t, mask] < best_order:
                    masks[t, source], best_size, best_order = mask, sets.sizes[i], order[t, mask]


@kernel
def _greedy_sets(ids: Ids, hosts: Ints, order: Ints, masks: Ints) -> None:
    """Fill `masks` `[T, N]` as `JointChoiceTable` does beyond the exact limit. The last of `hosts` `[E + 1]` is "none", on every node."""
    nodes, k = masks.shape[1], ids.shape[1]
    one = np.int64(1)
    gain = np.empty(nodes, np.int64)
    for t in range(ids.shape[0]):
        needed = np.int64(0)
        for j in range(k):
            at = hosts[ids[t, j]]
            if at & (at - 1) == 0:
                needed |= at
        for source in range(nodes):
            visited = needed | one << source
            while True:
                left = False
                gain[:] = 0
                for j in range(k):
                    at = hosts[ids[t, j]]
                    if at & visited == 0:
                        left = True
                        for n in range(nodes):
                            gain[n] += at >> n & 1
                if not left:
                    break
                best = 0
                for n in range(nodes):
                    gain[n] = (gain[n] << ORDER_BITS) + order[t, n]
                    if gain[n] > gain[best]:
                        best = n
                visited |= one << best
            masks[t, source] = visited
