"""Step 10: how each expert's tokens divide among its replicas, so that devices come out even.

What joint choice may do with a pair depends only on which visited nodes host the expert: the demand counts pairs by
expert and that mask, over every source node. A replica's part of a cell is its weight over the weights of the replicas there; weights move
against the load of their device until loads are even. It is an entropic solution of the min-max flow: no replica is starved
without need, which also is what holds on routing not seen.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from grace_moe.choice.node_sets import MAX_EXACT_NODES
from grace_moe.compiled import kernel, part
from grace_moe.planning.constants import EVEN_ENOUGH, LATE_POWER, LEAST_LOAD, LEAST_WEIGHT, SPLIT_ROUNDS

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]


class Rule(NamedTuple):
    """The constants of the split."""

    rounds: int
    enough: float
    least_load: float
    late_power: float
    least_weight: float


RULE = Rule(SPLIT_ROUNDS, EVEN_ENOUGH, LEAST_LOAD, LATE_POWER, LEAST_WEIGHT)
"""Handed to the compiled loop: a global of another module would be compiled in, and stay in numba's cache when it changes."""

Demand: TypeAlias = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]
"""`[C, 2]` expert, and mask of the visited nodes that hold it; `[C]` pairs."""


def demand(
    ids: npt.NDArray[np.int64], masks: npt.NDArray[np.int64], hosts: npt.NDArray[np.int64], sources: npt.NDArray[np.float64]
) -> Demand:
    """Pairs by expert and the nodes that its replica may be on; in ascending order of both.

    Args:
        ids: `[T, k]`, -1 = none.
        masks: `[T, N]` nodes that each token visits from each source node.
        hosts: `[E]` mask of the nodes that hold each expert.
        sources: `[T, N]` chance that each token comes from each node.
    """
    if masks.shape[1] <= MAX_EXACT_NODES:
        return _demand_of_all_masks(ids, masks, hosts, sources)
    return _demand_of_masks_seen(ids, masks, hosts, sources)


def _demand_of_all_masks(
    ids: npt.NDArray[np.int64], masks: npt.NDArray[np.int64], hosts: npt.NDArray[np.int64], sources: npt.NDArray[np.float64]
) -> Demand:
    """One cell for every expert and mask, where masks are few."""
    nodes, chosen = masks.shape[1], ids >= 0
    experts = ids[chosen]
    cells = np.zeros(len(hosts) << nodes)
    for node in range(nodes):
        visited = np.broadcast_to(masks[:, node, None], ids.shape)[chosen]
        weight = np.broadcast_to(sources[:, node, None], ids.shape)[chosen]
        cells += np.bincount((experts << nodes) + (hosts[experts] & visited), weights=weight, minlength=len(cells))
    where = np.flatnonzero(cells)
    return np.stack([where >> nodes, where & ((1 << nodes) - 1)], axis=1), cells[where]


def _demand_of_masks_seen(
    ids: npt.NDArray[np.int64], masks: npt.NDArray[np.int64], hosts: npt.NDArray[np.int64], sources: npt.NDArray[np.float64]
) -> Demand:
    """The cells that occur, by sorting; an expert on a single node has but one."""
    token, k = np.nonzero(ids >= 0)
    experts = ids[token, k]
    alone = hosts & (hosts - 1) == 0
    one = alone[experts]
    pairs = np.bincount(experts[one], weights=sources[token[one]].sum(axis=1), minlength=len(hosts))
    expert, mask, counts = np.flatnonzero(alone), hosts[alone], pairs[alone]
    some = np.repeat(experts[~one], masks.shape[1])
    if len(some):
        seen, weight = hosts[some] & masks[token[~one]].ravel(), sources[token[~one]].ravel()
        order = np.lexsort((seen, some))
        some, seen, weight = some[order], seen[order], weight[order]
        first = np.flatnonzero(np.append(True, (some[1:] != some[:-1]) | (seen[1:] != seen[:-1])))
        expert, mask = np.concatenate([expert, some[first]]), np.concatenate([mask, seen[first]])
        counts = np.concatenate([counts, np.add.reduceat(weight, first)])
    order = np.lexsort((mask, expert))
    order = order[counts[order] > 0]
    return np.stack([expert[order], mask[order]], axis=1), counts[order]


def even_out(
    cells: Demand,
    hosts: npt.NDArray[np.int64],
    node_of_device: npt.NDArray[np.int64],
    speed: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """`[E, R]` weights of the replicas that even out device loads (over speed), 0 where there is no replica; and the loads `[D]`.

    Args:
        cells: from `demand`.
        hosts: `[E, R]` devices, -1 = no replica.
        node_of_device, speed: `[D]`.
    """
    weights = np.where(hosts >= 0, 1.0, 0.0)
    where, counts = cells
    load = np.zeros(len(speed))
    if len(where):
        mean = counts.cumsum()[-1] / len(speed)
        _even_out(HostedDemand(where, counts, hosts, node_of_device), mean, speed / speed.mean(), RULE, weights, load)
    return weights, load


class HostedDemand(NamedTuple):
    """Arguments of `even_out`, for its kernel."""

    where: Ints
    counts: Floats
    hosts: Ints
    node_of_device: Ints


@part
def _device_loads(cells: HostedDemand, weights: Floats, load: Floats) -> None:
    """Pairs of each device under the weights, into `load` `[D]`."""
    hosts, node_of_device = cells.hosts, cells.node_of_device
    replicas = hosts.shape[1]
    for d in range(load.shape[0]):
        load[d] = 0.0
    for c in range(cells.where.shape[0]):
        e, mask = cells.where[c, 0], cells.where[c, 1]
        total = 0.0
        for i in range(replicas):
            d = hosts[e, i]
            if d >= 0 and mask >> node_of_device[d] & 1:
                total += weights[e, i]
        for i in range(replicas):
            d = hosts[e, i]
            if d >= 0 and mask >> node_of_device[d] & 1:
                load[d] += cells.counts[c] * weights[e, i] / total


@part
def _reweight(hosts: Ints, load: Floats, mean: float, rule: Rule, power: float, weights: Floats) -> None:
    """Multiply weights by mean load / load of their device, to a power; the largest of each expert is then 1."""
    for e in range(hosts.shape[0]):
        top = 0.0
        for i in range(hosts.shape[1]):
            if hosts[e, i] >= 0:
                weights[e, i] *= (mean / max(load[hosts[e, i]], rule.least_load * mean)) ** power
                top = max(top, weights[e, i])
        for i in range(hosts.shape[1]):
            if hosts[e, i] >= 0:
                weights[e, i] = max(weights[e, i] / top, rule.least_weight)


@part
def _copy(source: Floats, target: Floats) -> None:
    for e in range(source.shape[0]):
        for i in range(source.shape[1]):
            target[e, i] = source[e, i]


@kernel
def _even_out(cells: HostedDemand, mean: float, speed: Floats, rule: Rule, weights: Floats, best_load: Floats) -> None:
    """Multiply each weight by (mean load / load of its device), round by round; keep the weights of the lowest maximum.

    Loops instead of whole arrays: those take four times as long to compile.
    """
    load = np.empty(speed.shape[0])
    best = np.empty(weights.shape)
    _copy(weights, best)
    best_max = 1e300
    for step in range(rule.rounds):
        _device_loads(cells, weights, load)
        most = -np.inf
        for d in range(speed.shape[0]):
            load[d] /= speed[d]
            most = max(most, load[d])
        if most < best_max:
            best_max = most
            _copy(weights, best)
            for d in range(speed.shape[0]):
                best_load[d] = load[d]
        if most < rule.enough * mean:
            break
        _reweight(cells.hosts, load, mean, rule, 1.0 if step < rule.rounds // 2 else rule.late_power, weights)
    _copy(best, weights)
