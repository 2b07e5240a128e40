"""Which of a node's experts on which of its devices: equal slots, even load, few devices a token.

Start: copies that a device holds already stay; the others heaviest first, on the device with room that is lightest for its speed. Then
swaps between devices, annealed on the
number of distinct devices that a token needs in the node, plus a price on the expected squared imbalance of
devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit


@dataclass(frozen=True, kw_only=True)
class PackingOptions:
    """How hard to search, and what overload costs."""

    proposals_per_slot: int = 150
    """Swaps tried, over the node's slots."""
    price: float = 100.0
    """Copies per token that a unit of squared imbalance, summed over devices, is worth."""
    doubt: float = 3.0
    """Weight of the variance beside the square of the mean."""
    hot: float = 0.003
    """First temperature, in copies per token."""
    cold: float = 0.00005
    """Last temperature."""
    stay: float = 0.0
    """Copies per token that it is worth to leave a copy on the device that holds it already."""


@dataclass(frozen=True, kw_only=True)
class NodeShare:
    """What one node has to place. E experts, G devices of the node."""

    copies: npt.NDArray[np.int64]
    """`[E]` copies on this node, at most G each."""
    load: npt.NDArray[np.float64]
    """`[E]` pairs of the sample that this node computes."""
    share_here: npt.NDArray[np.float64]
    """`[E]` of each expert's load, what this node computes."""
    rows: npt.NDArray[np.int64]
    """`[R, k]` experts that each token of the sample has computed here, -1 = none."""
    fair: npt.NDArray[np.float64]
    """`[G]` fair load of each device, by its speed."""
    held: npt.NDArray[np.bool_] | None = None
    """`[G, E]` what each device holds already, in as many slots at most; None = nothing."""


def pack_devices(node: NodeShare, slots: int, noise: npt.NDArray[np.float64], options: PackingOptions, seed: int) -> npt.NDArray[np.int64]:
    """`[G, slots]` expert in each slot. A device may hold an expert twice if nothing else fits; the copy is idle.

    Args:
        noise: `[E, E]` covariance of the experts' shares, in units of a device's mean load.
    """
    slot = _heaviest_first(node, slots)
    if len(node.fair) == 1 or not len(node.rows):
        return slot
    experts = len(node.copies)
    padded = np.where(node.rows < 0, experts, node.rows)
    order = np.argsort(padded, axis=None, kind="stable")
    starts = np.zeros(experts + 2, np.int64)
    np.cumsum(np.bincount(padded.ravel(), minlength=experts + 1), out=starts[1:])
    per_copy = node.load / np.maximum(node.copies, 1)
    part = node.share_here / np.maximum(node.copies, 1)
    members = order // node.rows.shape[1]
    _swap(
        slot,
        per_copy,
        part,
        noise,
        padded,
        starts,
        members,
        node.fair,
        options.proposals_per_slot * slot.size,
        options.price,
        options.doubt,
        options.hot,
        options.cold,
        np.zeros((len(slot), experts)) if node.held is None else options.stay * node.held,
        seed,
    )
    return slot


def _heaviest_first(node: NodeShare, slots: int) -> npt.NDArray[np.int64]:
    items = np.repeat(np.arange(len(node.copies)), node.copies)
    weight = (node.load / np.maximum(node.copies, 1))[items]
    slot = np.full((len(node.fair), slots), -1, np.int64)
    used = np.zeros(len(slot), np.int64)
    total = np.zeros(len(slot))
    stays = np.zeros(len(items), bool)
    if node.held is not None:
        first = np.cumsum(node.copies) - node.copies
        for expert in np.flatnonzero(node.copies):
            for copy, device in enumerate(np.flatnonzero(node.held[:, expert])[: node.copies[expert]]):
                item = first[expert] + copy
                stays[item] = True
                slot[device, used[device]] = expert
                used[device] += 1
                total[device] += weight[item]
    for item in np.argsort(-weight, kind="stable"):
        if stays[item]:
            continue
        room = used < slots
        fresh = room & ~(slot == items[item]).any(axis=1)
        device = int(np.argmin(np.where(fresh if fresh.any() else room, total / node.fair, np.inf)))
        slot[device, used[device]] = items[item]
        used[device] += 1
        total[device] += weight[item]
    return slot


@njit(cache=True, nogil=True)
def _swap(
    slot: Any,
    per_copy: Any,
    part: Any,
    noise: Any,
    rows: Any,
    starts: Any,
    members: Any,
    fair: Any,
    proposals: Any,
    price: Any,
    doubt: Any,
    hot: Any,
    cold: Any,
    stay: Any,
    seed: Any,
) -> None:
    np.random.seed(seed)
    num_devices, slots = slot.shape
    num_rows, k = rows.shape
    experts = per_copy.shape[0]
    where = np.zeros(experts + 1, np.int64)  # the first device of an expert, as a bit; the rows' padding has none
    copies = np.zeros(experts, np.int64)
    total = np.zeros(num_devices)
    has = np.zeros((num_devices, experts), np.bool_)
    pull = np.zeros((num_devices, experts))
    for d in range(num_devices):
        for i in range(slots):
            e = slot[d, i]
            if e < 0:
                continue
            copies[e] += 1
            total[d] += per_copy[e]
            has[d, e] = True
            pull[d] += part[e] * noise[e]
            if where[e] == 0:
                where[e] = 1 << d
    variance = np.zeros(num_devices)
    over = np.zeros(num_devices)
    for d in range(num_devices):
        for i in range(slots):
            if slot[d, i] >= 0:
                variance[d] += part[slot[d, i]] * pull[d, slot[d, i]]
        over[d] = (total[d] / fair[d] - 1.0) ** 2 + doubt * variance[d]
    temperature = hot
    cooling = (cold / hot) ** (1.0 / max(1, proposals))
    energy = price * over.sum()
    best = energy
    best_slot = slot.copy()
    for _ in range(proposals):
        temperature *= cooling
        d1, d2 = np.random.randint(num_devices), np.random.randint(num_devices)
        i1, i2 = np.random.randint(slots), np.random.randint(slots)
        a, b = slot[d1, i1], slot[d2, i2]
        if d1 == d2 or a < 0 or b < 0 or a == b or has[d2, a] or has[d1, b]:
            continue
        shift = per_copy[b] - per_copy[a]
        pa, pb = part[a], part[b]
        own = pa * pa * noise[a, a] + pb * pb * noise[b, b] - 2 * pa * pb * noise[a, b]
        v1 = variance[d1] + 2 * (pb * pull[d1, b] - pa * pull[d1, a]) + own
        v2 = variance[d2] + 2 * (pa * pull[d2, a] - pb * pull[d2, b]) + own
        o1 = ((total[d1] + shift) / fair[d1] - 1.0) ** 2 + doubt * v1
        o2 = ((total[d2] - shift) / fair[d2] - 1.0) ** 2 + doubt * v2
        delta = price * (o1 + o2 - over[d1] - over[d2]) + stay[d1, a] + stay[d2, b] - stay[d1, b] - stay[d2, a]
        where_a = where[a] if copies[a] > 1 and where[a] != 1 << d1 else 1 << d2
        where_b = where[b] if copies[b] > 1 and where[b] != 1 << d2 else 1 << d1
        more = 0
        for side in range(2):
            x = a if side == 0 else b
            for p in range(starts[x], starts[x + 1]):
                r = members[p]
                old = 0
                new = 0
                counted = False
                for j in range(k):
                    e = rows[r, j]
                    if side == 1 and e == a:  # counted with a
                        counted = True
                        break
                    w = where[e]
                    old |= w
                    new |= where_a if e == a else (where_b if e == b else w)
                if counted:
                    continue
                changed = old ^ new
                while changed:
                    low = changed & -changed
                    more += 1 if new & low else -1
                    changed ^= low
        delta += more / num_rows
        if delta > -np.log(np.random.random() + 1e-300) * temperature:
            continue
        energy += delta
        slot[d1, i1], slot[d2, i2] = b, a
        has[d1, a], has[d2, a], has[d2, b], has[d1, b] = False, True, False, True
        where[a], where[b] = where_a, where_b
        total[d1] += shift
        total[d2] -= shift
        variance[d1], variance[d2], over[d1], over[d2] = v1, v2, o1, o2
        for e in range(experts):
            move = pb * noise[b, e] - pa * noise[a, e]
            pull[d1, e] += move
            pull[d2, e] -= move
        if energy < best:
            best = energy
            best_slot[:] = slot
    slot[:] = best_slot
