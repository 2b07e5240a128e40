"""Which experts on which node where nodes are too many for the exact search: groups of nodes first, then each group's nodes.

The search of `nodes` runs twice. First every group of nodes is one node of it: its room is that of its nodes together. Then, in
each group, on the experts that it holds and the tokens' experts that it computes by joint choice, as if the group were the cluster.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from grace_moe.choice.joint import joint_choice_table
from grace_moe.choice.node_sets import MAX_EXACT_NODES
from grace_moe.placement import LayerPlacement
from grace_moe.planning.grace.search.node_copies import NodeLimits, seed_copies
from grace_moe.planning.grace.search.node_state import SearchOptions
from grace_moe.planning.grace.search.nodes import search_nodes
from grace_moe.topology import Topology


def groups_of(nodes: int) -> list[range]:
    """Near-equal runs of consecutive nodes, as few nodes in each as groups can be had."""
    count = min(nodes, MAX_EXACT_NODES)
    bounds = [nodes * g // count for g in range(count + 1)]
    return [range(a, b) for a, b in pairwise(bounds)]


def search_many_nodes(
    ids: npt.NDArray[np.int64],
    share: npt.NDArray[np.float64],
    noise: npt.NDArray[np.float64],
    limits: NodeLimits,
    options: SearchOptions,
    seed: int,
    start: npt.NDArray[np.int64],
    pins: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.int64]:
    """Better copies `[N, E]` than `start`; see `search_nodes`, whose arguments these are."""
    groups = groups_of(len(limits.slots))
    group_of = np.repeat(np.arange(len(groups)), [len(g) for g in groups])
    first = [group.start for group in groups]
    pooled = NodeLimits(
        slots=np.add.reduceat(limits.slots, first),
        devices=np.add.reduceat(limits.devices, first),
        capacity=np.add.reduceat(limits.capacity, first),
    )
    pin_groups = None if pins is None else np.where(pins < 0, -1, group_of[pins])
    held = np.add.reduceat(start, first)
    serving = options.held
    pooled_options = options if serving is None else replace(options, held=np.add.reduceat(serving, first))
    held = search_nodes(ids, share, noise, pooled, pooled_options, seed, held, pin_groups)
    computed = _computed_by(ids, held, pooled, seed, pin_groups)
    copies = np.zeros_like(start)
    for g, group in enumerate(groups):
        nodes, experts = np.array(group), np.flatnonzero(held[g])
        if len(group) == 1:
            copies[nodes[0]] = held[g]
            continue
        part = held[g] / np.maximum(held.sum(axis=0), 1)
        here = computed == g
        rows = here.any(axis=1)
        compact = np.full(len(share) + 1, -1)
        compact[experts] = np.arange(len(experts))
        own = compact[np.where(here, ids, -1)[rows]]
        load = (share * part)[experts]
        total = max(load.sum(), 1e-12)
        capacity = limits.capacity[nodes]
        inside = NodeLimits(slots=limits.slots[nodes], devices=limits.devices[nodes], capacity=capacity / capacity.sum())
        fitted = _fitted(start[np.ix_(nodes, experts)], held[g][experts], load / total, inside)
        own_pins = None
        if pins is not None:
            own_pins = np.where((pins[rows] >= group.start) & (pins[rows] < group.stop), pins[rows] - group.start, -1)
        tried = options.proposals * int(inside.slots.sum()) // int(limits.slots.sum())
        copies[np.ix_(nodes, experts)] = search_nodes(
            own,
            load / total,
            noise[np.ix_(experts, experts)] * np.outer(part[experts], part[experts]) / total**2,
            inside,
            # Copies are counted per token of the layer, of which the group sees some.
            replace(
                options,
                proposals=tried,
                imbalance_price=options.imbalance_price * len(ids) / max(1, len(own)),
                move_price=options.move_price * len(ids) / max(1, len(own)),
                held=None if serving is None else serving[np.ix_(nodes, experts)],
            ),
            seed,
            fitted,
            own_pins,
        )
    return copies


def _computed_by(
    ids: npt.NDArray[np.int64], held: npt.NDArray[np.int64], limits: NodeLimits, seed: int, pins: npt.NDArray[np.int64] | None
) -> npt.NDArray[np.int64]:
    """`[T, k]` group that computes each token's expert under joint choice, from sources as many as there are devices."""
    hosts = tuple(tuple(int(g) for g in np.flatnonzero(held[:, e])) for e in range(held.shape[1]))
    weights = tuple(tuple(float(held[g, e] / held[list(row), e].sum()) for g in row) for e, row in enumerate(hosts))
    layer = LayerPlacement(layer_id=0, devices_of_expert=hosts, replica_weights=weights)
    sources = np.random.default_rng(seed).choice(len(held), len(ids), p=limits.devices / limits.devices.sum())
    if pins is not None:
        sources = np.where(pins < 0, sources, pins)
    table = joint_choice_table(layer, Topology.regular(len(held), 1))
    chosen: npt.NDArray[np.int64] = table.choose(0, ids, sources, np.arange(len(ids)), seed=seed)
    return chosen


def _fitted(
    copies: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64], share: npt.NDArray[np.float64], limits: NodeLimits
) -> npt.NDArray[np.int64]:
    """Copies `[n, E]` with `wanted` of each expert in all, as many of them as can be where they were."""
    fitted = copies.copy()
    load = fitted @ (share / np.maximum(wanted, 1)) / limits.capacity
    for expert in np.flatnonzero(fitted.sum(axis=0) > wanted):
        for _ in range(int(fitted[:, expert].sum() - wanted[expert])):
            node = int(np.argmax(np.where(fitted[:, expert] > 0, load, -np.inf)))
            fitted[node, expert] -= 1
            load[node] -= share[expert] / max(wanted[expert], 1) / limits.capacity[node]
    missing = np.flatnonzero(fitted.sum(axis=0) < wanted)
    for expert in missing[np.argsort(-share[missing], kind="stable")]:
        for _ in range(int(wanted[expert] - fitted[:, expert].sum())):
            open_ = (fitted.sum(axis=1) < limits.slots) & (fitted[:, expert] < limits.devices)
            if not open_.any():
                return seed_copies(share, limits)  # the last ones have room only where their devices are full of them
            node = int(np.argmin(np.where(open_, load, np.inf)))
            fitted[node, expert] += 1
            load[node] += share[expert] / wanted[expert] / limits.capacity[node]
    return fitted
