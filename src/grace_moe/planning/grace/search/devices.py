"""Which of a node's experts on which of its devices: equal slots, even load, few devices a token.

Start: copies that a device holds already stay; the others heaviest first, on the device with room that is lightest for its speed. Then
swaps between devices, annealed.

Energy, in copies per token: distinct devices that a token needs in the node + price * expected squared imbalance of devices (its mean's
square and its variance) - stay, for each copy that is where it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from grace_moe.choice.cover import padded, tokens_of_experts
from grace_moe.compiled import kernel, part
from grace_moe.planning.constants import DEVICE_IMBALANCE_PRICE, PACKING_HEAT, SWAPS_PER_SLOT, VARIANCE_WEIGHT
from grace_moe.planning.grace.search.annealing import Cooling, make_anneal

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PackingOptions:
    """How hard to search, and what overload costs."""

    proposals_per_slot: int = SWAPS_PER_SLOT
    """Swaps tried, over the node's slots."""
    imbalance_price: float = DEVICE_IMBALANCE_PRICE
    """Copies per token that a unit of squared imbalance, summed over devices, is worth."""
    variance_weight: float = VARIANCE_WEIGHT
    """Weight of the variance beside the square of the mean."""
    hot: float = PACKING_HEAT[0]
    """First temperature, in copies per token."""
    cold: float = PACKING_HEAT[1]
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
    state = device_state(node, slot, noise, options)
    proposals = options.proposals_per_slot * slot.size
    cooling = Cooling(proposals=proposals, steps=proposals, hot=options.hot, cold=options.cold)
    _search(state, options.imbalance_price * float(state.over.cumsum()[-1]), cooling, seed)
    return state.best.reshape(slot.shape)


def _heaviest_first(node: NodeShare, slots: int) -> npt.NDArray[np.int64]:
    items = np.repeat(np.arange(len(node.copies)), node.copies)
    weight = (node.load / np.maximum(node.copies, 1))[items]
    slot = np.full((len(node.fair), slots), -1, np.int64)
    used = np.zeros(len(slot), np.int64)
    total = np.zeros(len(slot))
    stays = np.zeros(len(items), bool)
    if node.held is not None:
        # Of the devices that hold an expert, the first ones keep it, as many as there are copies.
        expert, device = np.nonzero((node.held & (node.held.cumsum(axis=0) <= node.copies)).T)
        place = node.held.cumsum(axis=0)[device, expert] - 1
        kept = (np.cumsum(node.copies) - node.copies)[expert] + place
        stays[kept] = True
        np.add.at(total, device, weight[kept])
        order = np.argsort(device, kind="stable")
        used += np.bincount(device, minlength=len(slot))
        slot[device[order], np.arange(len(order)) - (np.cumsum(used) - used)[device[order]]] = expert[order]
    heaviest = np.argsort(-weight, kind="stable")
    for item in heaviest[~stays[heaviest]]:
        free = used < slots
        fresh = free & ~(slot == items[item]).any(axis=1)
        lightest = int(np.argmin(np.where(fresh if fresh.any() else free, total / node.fair, np.inf)))
        slot[lightest, used[lightest]] = items[item]
        used[lightest] += 1
        total[lightest] += weight[item]
    return slot


class Swap(NamedTuple):
    """Two devices exchange what is in a slot of each."""

    first: int
    """-1 = none."""
    second: int
    slot_of_first: int
    slot_of_second: int
    given: int
    """Expert that leaves the first device."""
    taken: int


class DeviceState(NamedTuple):
    """G devices of a node, S slots each, E experts, R tokens."""

    rows: npt.NDArray[np.int32]
    """`[R, k]`, E = none."""
    starts: Ints
    """`[E + 1]` expert e's tokens are `members[starts[e] : starts[e + 1]]`."""
    members: npt.NDArray[np.int32]
    noise: Floats
    """`[E, E]` covariance of the shares."""
    fair: Floats
    """`[G]` fair load."""
    stay: Floats
    """`[G, E]` what it is worth that a device holds an expert."""
    per_copy: Floats
    """`[E]` load of a copy."""
    part: Floats
    """`[E]` of an expert's load that a copy takes."""
    copies: Ints
    """`[E]`"""
    imbalance_price: float
    variance_weight: float
    slot: Ints
    """`[G, S]` expert in each slot, -1 = none."""
    has: npt.NDArray[np.bool_]
    """`[G, E]`"""
    where: Ints
    """`[E + 1]` the device that tokens of an expert go to, -1 = none."""
    total: Floats
    """`[G]` load."""
    pull: Floats
    """`[G, E]` covariance of an expert's share with the device's load."""
    variance: Floats
    """`[G]` of the load."""
    over: Floats
    """`[G]` expected squared imbalance."""
    new_variance: Floats
    """`[2]` of the first and second device of a swap."""
    new_over: Floats
    solution: Ints
    """`slot`, flat."""
    best: Ints
    """The best of it so far."""


def device_state(node: NodeShare, slot: Ints, noise: Floats, options: PackingOptions) -> DeviceState:
    """The state of `slot` `[G, S]`, computed from nothing; arguments as of `pack_devices`."""
    experts, devices = len(node.copies), len(slot)
    slot = slot.copy()
    rows = padded(node.rows, experts)
    starts, members = tokens_of_experts(rows, experts)
    per_copy, part_of_copy = node.load / np.maximum(node.copies, 1), node.share_here / np.maximum(node.copies, 1)
    where, copies = np.full(experts + 1, -1), np.zeros(experts, np.int64)
    has = np.zeros((devices, experts), bool)
    total, variance, pull = np.zeros(devices), np.zeros(devices), np.zeros((devices, experts))
    for d, held in enumerate(slot):
        for e in held[held >= 0]:
            copies[e] += 1
            total[d] += per_copy[e]
            has[d, e] = True
            pull[d] += part_of_copy[e] * noise[e]
            if where[e] < 0:
                where[e] = d
        for e in held[held >= 0]:
            variance[d] += part_of_copy[e] * pull[d, e]
    imbalance = total / node.fair - 1.0
    return DeviceState(
        rows=rows,
        starts=starts,
        members=members,
        noise=noise,
        fair=node.fair,
        stay=np.zeros((devices, experts)) if node.held is None else np.where(node.held, float(options.stay), 0.0),
        per_copy=per_copy,
        part=part_of_copy,
        copies=copies,
        imbalance_price=float(options.imbalance_price),
        variance_weight=float(options.variance_weight),
        slot=slot,
        has=has,
        where=where,
        total=total,
        pull=pull,
        variance=variance,
        over=imbalance * imbalance + options.variance_weight * variance,
        new_variance=np.empty(2),
        new_over=np.empty(2),
        solution=slot.reshape(-1),
        best=slot.reshape(-1).copy(),
    )


def energy(state: DeviceState) -> float:
    """Of the state, in copies per token."""
    reached = np.zeros((len(state.rows), len(state.fair) + 1), bool)
    np.put_along_axis(reached, state.where[state.rows], True, axis=1)  # -1 is the last column
    devices = reached[:, :-1].sum(axis=1)
    return float(devices.mean() + state.imbalance_price * state.over.sum() - state.stay[state.has].sum())


@part
def _propose(state: DeviceState) -> Swap:
    devices, slots = state.slot.shape
    d1, d2 = np.random.randint(devices), np.random.randint(devices)
    i1, i2 = np.random.randint(slots), np.random.randint(slots)
    a, b = state.slot[d1, i1], state.slot[d2, i2]
    if d1 == d2 or a < 0 or b < 0 or a == b or state.has[d2, a] or state.has[d1, b]:
        return Swap(-1, 0, 0, 0, 0, 0)
    return Swap(d1, d2, i1, i2, a, b)


@part
def _change(state: DeviceState, swap: Swap, most: float) -> float:
    """Of the energy; the two devices' variance and imbalance after the swap are left in the state's `new_` arrays."""
    d1, d2, a, b, over, stay = swap.first, swap.second, swap.given, swap.taken, state.over, state.stay
    noise, pull, pa, pb = state.noise, state.pull, state.part[a], state.part[b]
    shift = state.per_copy[b] - state.per_copy[a]
    own = pa * pa * noise[a, a] + pb * pb * noise[b, b] - 2 * pa * pb * noise[a, b]
    v1 = state.variance[d1] + 2 * (pb * pull[d1, b] - pa * pull[d1, a]) + own
    v2 = state.variance[d2] + 2 * (pa * pull[d2, a] - pb * pull[d2, b]) + own
    excess1 = (state.total[d1] + shift) / state.fair[d1] - 1.0
    excess2 = (state.total[d2] - shift) / state.fair[d2] - 1.0
    o1, o2 = excess1 * excess1 + state.variance_weight * v1, excess2 * excess2 + state.variance_weight * v2
    state.new_variance[0], state.new_variance[1], state.new_over[0], state.new_over[1] = v1, v2, o1, o2
    change = state.imbalance_price * (o1 + o2 - over[d1] - over[d2]) + stay[d1, a] + stay[d2, b] - stay[d1, b] - stay[d2, a]
    return float(change + _more_devices(state, swap) / state.rows.shape[0])


@part
def _where_after(state: DeviceState, swap: Swap) -> tuple[int, int]:
    """Devices that tokens of the two experts go to after the swap."""
    a, b, first, second = swap.given, swap.taken, swap.first, swap.second
    where_a = state.where[a] if state.copies[a] > 1 and state.where[a] != first else second
    where_b = state.where[b] if state.copies[b] > 1 and state.where[b] != second else first
    return where_a, where_b


@part
def _more_devices(state: DeviceState, swap: Swap) -> int:
    """Devices that tokens go to after the swap, less those before, summed over tokens; only the two that swap can come or go."""
    a, b = swap.given, swap.taken
    where_a, where_b = _where_after(state, swap)
    more = 0
    for side in range(2):
        x = a if side == 0 else b
        for p in range(state.starts[x], state.starts[x + 1]):
            r = state.members[p]
            old, new = 0, 0
            counted = False
            for j in range(state.rows.shape[1]):
                e = state.rows[r, j]
                if side == 1 and e == a:  # counted with a
                    counted = True
                    break
                w = state.where[e]
                old |= _which_of(swap, w)
                new |= _which_of(swap, where_a if e == a else (where_b if e == b else w))
            if not counted:
                more += (new & 1) + (new >> 1) - (old & 1) - (old >> 1)
    return more


@part
def _which_of(swap: Swap, device: int) -> int:
    """1 for the first device of a swap, 2 for the second, 0 for any other."""
    return (device == swap.first) + 2 * (device == swap.second)


@part
def _apply(state: DeviceState, swap: Swap, energy: float) -> float:
    d1, d2, a, b, has = swap.first, swap.second, swap.given, swap.taken, state.has
    state.where[a], state.where[b] = _where_after(state, swap)
    state.slot[d1, swap.slot_of_first], state.slot[d2, swap.slot_of_second] = b, a
    has[d1, a], has[d2, a], has[d2, b], has[d1, b] = False, True, False, True
    shift = state.per_copy[b] - state.per_copy[a]
    state.total[d1] += shift
    state.total[d2] -= shift
    state.variance[d1], state.variance[d2] = state.new_variance[0], state.new_variance[1]
    state.over[d1], state.over[d2] = state.new_over[0], state.new_over[1]
    pa, pb = state.part[a], state.part[b]
    for e in range(has.shape[1]):
        move = pb * state.noise[b, e] - pa * state.noise[a, e]
        state.pull[d1, e] += move
        state.pull[d2, e] -= move
    return energy


@part
def _undo(state: DeviceState, swap: Swap) -> None:
    """Nothing: a swap that is only tried leaves no trace but in the `new_` arrays."""


_anneal = make_anneal(_propose, _change, _apply, _undo)


@kernel
def _search(state: DeviceState, start: float, cooling: Cooling, seed: int) -> tuple[float, float]:
    return _anneal(state, start, cooling, seed)
