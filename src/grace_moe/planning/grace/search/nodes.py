"""Which experts on which node: annealing on the exact objective, under prices on load.

State: copies `[N, E]` of each expert on each node; each node's slots are full. Energy, in cross-node copies per token:
traffic + price * expected squared imbalance of nodes on routing to come (its mean's square and its variance) + price * load in
copies too hot for one device. Loads assume that an expert's tokens divide
evenly over its copies; the split is solved later (`split`).

Moves: a slot takes another expert (the old one keeps a copy elsewhere), or two nodes swap an expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from grace_moe.choice.cover import CoverTables, token_cost, tokens_of_experts
from grace_moe.placement import LayerPlacement
from grace_moe.topology import Topology


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How hard to search, and what overload costs."""

    proposals: int = 150_000
    """Moves tried."""
    hot: float = 0.008
    """First temperature, in copies per token."""
    cold: float = 1e-4
    """Last temperature."""
    price: float = 4.0
    """Copies per token that a unit of squared imbalance, summed over nodes, is worth."""
    doubt: float = 3.0
    """Weight of the variance beside the square of the mean: a search finds what looks steady in its sample."""
    copy_cap: float = 0.8
    """Load of one copy, over a device's mean load, that is still free."""
    copy_price: float = 1.0
    """Copies per token that a unit of its square above that, summed over copies, is worth."""
    swap_share: float = 0.3
    """Share of the moves that swap where both kinds are possible."""


@dataclass(frozen=True, kw_only=True)
class NodeRoom:
    """What each node can take."""

    slots: npt.NDArray[np.int64]
    """`[N]` experts that the node's devices hold together."""
    devices: npt.NDArray[np.int64]
    """`[N]` devices: the most copies of one expert that are of use."""
    capacity: npt.NDArray[np.float64]
    """`[N]` share of all devices' speed."""


def seed_copies(share: npt.NDArray[np.float64], room: NodeRoom) -> npt.NDArray[np.int64]:
    """A balanced start `[N, E]`: copies by heat (as EPLB), dealt heaviest first to the lightest node with room."""
    nodes, experts = len(room.slots), len(share)
    heat = share + max(share.mean(), 1e-12) * 1e-3
    total = np.ones(experts, np.int64)
    for _ in range(int(room.slots.sum()) - experts):
        total[np.argmax(np.where(total < room.devices.sum(), heat / total, -1.0))] += 1
    copies = np.zeros((nodes, experts), np.int64)
    load = np.zeros(nodes)
    for expert in np.argsort(-heat / total, kind="stable"):
        for _ in range(total[expert]):
            open_ = (copies.sum(axis=1) < room.slots) & (copies[:, expert] < room.devices)
            if open_.any():
                fewest = copies[open_, expert].min()
                node = int(np.argmin(np.where(open_ & (copies[:, expert] == fewest), load / room.capacity, np.inf)))
                copies[node, expert] += 1
                load[node] += heat[expert] / total[expert]
    for node in range(nodes):  # slots that the deal could not use
        while copies[node].sum() < room.slots[node]:
            copies[node, np.argmax(np.where(copies[node] < room.devices[node], heat / (1 + copies.sum(axis=0)), -1))] += 1
    return copies


def copies_on_nodes(layer: LayerPlacement, topology: Topology, slots: int) -> npt.NDArray[np.int64]:
    """`[N, E]` copies that each node of a placement holds; slots of its devices that are empty get more of what it holds.

    Args:
        slots: of each device.
    """
    copies = np.zeros((topology.num_nodes, len(layer.devices_of_expert)), np.int64)
    for expert, devices in enumerate(layer.devices_of_expert):
        np.add.at(copies[:, expert], topology.node_of_device[list(devices)], 1)
    for node, row in enumerate(copies):
        most = len(topology.nodes[node].devices)
        for _ in range(min(most * slots, most * len(row)) - int(row.sum())):
            row[np.argmin(np.where(row == 0, most + 1, np.where(row < most, row, most + 2)))] += 1
    return copies


def search_nodes(
    ids: npt.NDArray[np.int64],
    share: npt.NDArray[np.float64],
    noise: npt.NDArray[np.float64],
    room: NodeRoom,
    options: SearchOptions,
    seed: int,
    start: npt.NDArray[np.int64],
    pins: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.int64]:
    """Better copies `[N, E]` than `start`, by the energy of the module docstring.

    Args:
        ids: `[T, k]` of the tokens to judge traffic by, -1 = none.
        share, noise: from `uncertainty.load_shares`.
        pins: `[T]` source node of each token, -1 = any, all alike; None = none is known.
    """
    experts = len(share)
    tables = CoverTables(len(room.slots))
    copies = start.copy()
    padded = np.where(ids < 0, experts, ids).astype(np.int32)
    starts, members = tokens_of_experts(padded, experts)
    _anneal(
        padded,
        np.full(len(ids), -1) if pins is None else pins,
        starts,
        members,
        share,
        noise,
        copies,
        room.slots,
        room.devices,
        room.capacity,
        tables.meets,
        tables.small,
        tables.level,
        tables.holds,
        tables.words,
        options.proposals,
        options.hot,
        options.cold,
        options.price,
        options.doubt,
        options.copy_cap,
        options.copy_price,
        options.swap_share,
        seed,
    )
    return copies


@njit(cache=True, nogil=True)
def _penalty(load: Any, variance: Any, capacity: Any, doubt: Any, price: Any) -> Any:
    total = 0.0
    for n in range(load.shape[0]):
        total += (load[n] / capacity[n] - 1.0) ** 2 + doubt * variance[n] / capacity[n] ** 2
    return price * total


@njit(cache=True, nogil=True, inline="always")
def _too_hot(share: Any, copies: Any, limit: Any, num_devices: Any) -> Any:
    """Square of what each copy holds above the limit, in mean device loads, summed over the copies."""
    over = max(share / copies - limit, 0.0) * num_devices
    return over * over * copies


@njit(cache=True, nogil=True)
def _anneal(
    ids: Any,
    pins: Any,
    starts: Any,
    members: Any,
    share: Any,
    noise: Any,
    copies: Any,
    slots: Any,
    devices: Any,
    capacity: Any,
    meets: Any,
    small: Any,
    level: Any,
    holds: Any,
    spans: Any,
    proposals: Any,
    hot: Any,
    cold: Any,
    price: Any,
    doubt: Any,
    copy_cap: Any,
    copy_price: Any,
    swap_share: Any,
    seed: Any,
) -> None:
    np.random.seed(seed)
    nodes, experts = copies.shape
    num_tokens, k = ids.shape
    words = meets.shape[1]
    num_devices = devices.sum()
    limit = copy_cap / num_devices
    sets = np.empty((experts + 1, words), np.uint64)
    mask = np.zeros(experts, np.int64)
    total = np.zeros(experts, np.int64)
    slot = np.empty((nodes, slots.max()), np.int64)
    for n in range(nodes):
        i = 0
        for e in range(experts):
            total[e] += copies[n, e]
            if copies[n, e] > 0:
                mask[e] |= 1 << n
            for _ in range(copies[n, e]):
                slot[n, i] = e
                i += 1
    part = np.zeros((nodes, experts))  # the part of an expert's load that a node takes
    load = np.zeros(nodes)
    hot_load = 0.0
    for e in range(experts):
        hot_load += _too_hot(share[e], total[e], limit, num_devices)
        for n in range(nodes):
            part[n, e] = copies[n, e] / total[e]
            load[n] += share[e] * part[n, e]
        for w in range(words):
            sets[e, w] = meets[mask[e], w]
    for w in range(words):
        sets[experts, w] = ~np.uint64(0)
    pull = part @ noise
    variance = (pull * part).sum(axis=1)
    new_load = np.empty(nodes)
    new_variance = np.empty(nodes)
    scratch = np.empty(words, np.uint64)
    cost = np.empty(num_tokens, np.uint8)
    new_cost = np.empty(num_tokens, np.uint8)
    cross = np.int64(0)
    for t in range(num_tokens):
        cost[t] = token_cost(ids, t, sets, pins, scratch, small, nodes, level, holds, spans)
        cross += cost[t]
    unit = 1.0 / (max(num_tokens, 1) * nodes)
    penalty = _penalty(load, variance, capacity, doubt, price) + copy_price * hot_load
    cooling = (cold / hot) ** (1.0 / max(1, proposals - 1))
    temperature = hot
    best = cross * unit + penalty
    best_copies = copies.copy()
    for _ in range(proposals):
        temperature *= cooling
        n = np.random.randint(nodes)
        i = np.random.randint(slots[n])
        a = slot[n, i]
        b = np.random.randint(experts)
        if b == a or copies[n, b] >= devices[n]:
            continue
        swap = total[a] == 1 or np.random.random() < swap_share
        m = n
        if swap:  # a copy of b comes from another node m, which takes this copy of a
            m = np.random.randint(nodes)
            if m == n or copies[m, b] == 0 or copies[m, a] >= devices[m]:
                continue

        # Loads and their variances after the move.
        new_hot = hot_load
        for x in range(nodes):
            if swap:
                step_a = ((x == m) - (x == n)) / total[a]
                step_b = ((x == n) - (x == m)) / total[b]
            else:
                step_a = (copies[x, a] - (x == n)) / (total[a] - 1) - part[x, a]
                step_b = (copies[x, b] + (x == n)) / (total[b] + 1) - part[x, b]
            new_load[x] = load[x] + share[a] * step_a + share[b] * step_b
            new_variance[x] = (
                variance[x]
                + 2 * (step_a * pull[x, a] + step_b * pull[x, b])
                + step_a * step_a * noise[a, a]
                + step_b * step_b * noise[b, b]
                + 2 * step_a * step_b * noise[a, b]
            )
        if not swap:
            new_hot += _too_hot(share[a], total[a] - 1, limit, num_devices) - _too_hot(share[a], total[a], limit, num_devices)
            new_hot += _too_hot(share[b], total[b] + 1, limit, num_devices) - _too_hot(share[b], total[b], limit, num_devices)
        new_penalty = _penalty(new_load, new_variance, capacity, doubt, price) + copy_price * new_hot
        # What the temperature still accepts, left for traffic.
        room = -np.log(np.random.random() + 1e-300) * temperature - (new_penalty - penalty)

        mask_a, mask_b = mask[a], mask[b]
        if copies[n, a] == 1:
            mask_a &= ~(1 << n)
        mask_b |= 1 << n
        if swap:
            mask_a |= 1 << m
            if copies[m, b] == 1:
                mask_b &= ~(1 << m)
        a_moves, b_moves = mask_a != mask[a], mask_b != mask[b]
        for w in range(words):
            sets[a, w] = meets[mask_a, w]
            sets[b, w] = meets[mask_b, w]
        change = np.int64(0)
        if b_moves:
            for p in range(starts[b], starts[b + 1]):
                t = members[p]
                new_cost[t] = token_cost(ids, t, sets, pins, scratch, small, nodes, level, holds, spans)
                change += np.int64(new_cost[t]) - np.int64(cost[t])
        if a_moves:
            for p in range(starts[a], starts[a + 1]):
                t = members[p]
                counted = False
                if b_moves:
                    for j in range(k):
                        counted |= ids[t, j] == b
                if not counted:
                    new_cost[t] = token_cost(ids, t, sets, pins, scratch, small, nodes, level, holds, spans)
                    change += np.int64(new_cost[t]) - np.int64(cost[t])
                    if change * unit > room and not swap:  # a copy lost only adds: no way back
                        break
        if change * unit > room:
            for w in range(words):
                sets[a, w] = meets[mask[a], w]
                sets[b, w] = meets[mask[b], w]
            continue

        if a_moves:
            for p in range(starts[a], starts[a + 1]):
                cost[members[p]] = new_cost[members[p]]
        if b_moves:
            for p in range(starts[b], starts[b + 1]):
                t = members[p]
                cost[t] = new_cost[t]
        cross += change
        slot[n, i] = b
        copies[n, a] -= 1
        copies[n, b] += 1
        if swap:
            for q in range(slots[m]):
                if slot[m, q] == b:
                    slot[m, q] = a
                    break
            copies[m, b] -= 1
            copies[m, a] += 1
        else:
            total[a] -= 1
            total[b] += 1
        mask[a], mask[b] = mask_a, mask_b
        for x in range(nodes):
            load[x], variance[x] = new_load[x], new_variance[x]
            step_a = copies[x, a] / total[a] - part[x, a]
            step_b = copies[x, b] / total[b] - part[x, b]
            if step_a != 0.0 or step_b != 0.0:
                for e in range(experts):
                    pull[x, e] += step_a * noise[a, e] + step_b * noise[b, e]
                part[x, a] += step_a
                part[x, b] += step_b
        hot_load, penalty = new_hot, new_penalty
        if cross * unit + penalty < best:
            best = cross * unit + penalty
            best_copies[:] = copies
    copies[:] = best_copies
