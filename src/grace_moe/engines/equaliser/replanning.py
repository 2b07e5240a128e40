"""Re-planning by loads alone while an engine serves: from its map, within a budget of moves, where loads say surely that it pays.

A change is proposed by the loads of one window and judged by those of the next, which know nothing of the noise that proposed it. It is
made where its worth by the second window exceeds its cost by more than that window's noise can. The noise is that of counts
(multinomial), times how much more the two windows differ than counts would: requests come in bursts, and traffic that is turning
differs most.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from grace_moe.engines.equaliser.layer import PRICE, LayerState
from grace_moe.placement import LayerPlacement, Placement
from grace_moe.topology import Topology

FALSE_ALARMS = 0.001
"""Chance that a re-planning changes anything where no change is worth its cost."""
WORTH_MOVING = 0.01
"""Copies per token that a change must be worth in a running engine: below it, moving the weights costs more than it brings."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Window:
    """What a re-planning decides by."""

    serving: Placement
    """The map that serves; every device has as many slots."""
    loads: Floats
    """`[layers, experts, devices]` pairs that each replica computed in the window that ends now. Layers without any are kept."""
    before: Floats
    """The same of the window before it, under the same map."""
    most_moves: int
    """Most slots that change their expert, all layers together."""


@dataclass(frozen=True, kw_only=True)
class Replanned:
    """What came of it."""

    placement: Placement
    moved: int
    """Slots with another expert than before."""
    reason: str = ""
    """In words; empty where nothing was decided."""


@dataclass(frozen=True, kw_only=True)
class _Change:
    """One change of a layer: experts that leave devices, and others that come to them."""

    leave: tuple[tuple[int, int], ...]
    come: tuple[tuple[int, int], ...]
    """(expert, device) of each."""
    worth: float
    """By the window that judges."""


def replan(window: Window) -> Replanned:
    """Change the serving map where it surely pays, what is worth most first, up to the budget.

    Either a replica gives its slot to another expert's, or two experts of a node change places: between nodes, no expert loses its last
    replica, and the plan's grouping stays. Experts that are not touched keep their weights; replicas of the others share evenly.
    """
    level = 1.0 - FALSE_ALARMS / (len(window.serving.layers) + window.most_moves)  # each change that is judged may be a false alarm
    layers = [
        _Layer(layer, window.serving.topology, before, now) if before.any() and now.any() else None
        for layer, before, now in zip(window.serving.layers, window.before, window.loads, strict=True)
    ]
    open_ = {index: change for index, layer in enumerate(layers) if layer is not None and (change := layer.next(level)) is not None}
    moved = 0
    while open_:
        index = max(open_, key=lambda i: (round(open_[i].worth, 12), -i))
        change, layer = open_.pop(index), layers[index]
        if moved + len(change.come) > window.most_moves:
            continue
        assert layer is not None
        layer.make(change)
        moved += len(change.come)
        following = layer.next(level)
        if following is not None:
            open_[index] = following
    placed = tuple(old if new is None else new.state.placed() for old, new in zip(window.serving.layers, layers, strict=True))
    reason = f"{moved} slots change their expert, as the loads of two windows say" if moved else ""
    return Replanned(placement=replace(window.serving, layers=placed), moved=moved, reason=reason)


def spread_evenly(serving: Placement, loads: npt.NDArray[np.int64]) -> Floats:
    """`[layers, experts, devices]` pairs of each replica, for engines that tell `[layers, experts]` alone: a node's replicas share its
    tokens evenly, all share those of nodes without one."""
    states = [LayerState(layer, serving.topology, row.astype(float)) for layer, row in zip(serving.layers, loads, strict=True)]
    return np.stack([row[:, None] * state.shares(state.holds) for state, row in zip(states, loads, strict=True)])


class _Layer:
    """A layer on its way: what each replica computes, by both windows, as parts of all pairs."""

    def __init__(self, layer: LayerPlacement, topology: Topology, before: Floats, now: Floats) -> None:
        self.state = LayerState(layer, topology, before.sum(axis=1))
        self.before, self.now = before / before.sum(), now / now.sum()
        self.pairs = float(now.sum())
        self.dispersion, self.freedom = _dispersion(before, now)

    def next(self, level: float) -> _Change | None:
        """The best change by the window before, if the window now says so too, at this level of confidence."""
        state = self.state
        if PRICE * float(state.imbalance(self.before.sum(axis=0))) <= WORTH_MOVING:
            return None
        tried = [self._replica_exchange(device) for device in range(state.devices)] + [self._swap(node) for node in range(state.nodes)]
        found = [(worth, change) for worth, change in filter(None, tried) if worth > WORTH_MOVING]
        if not found:
            return None
        change = max(found, key=lambda one: round(one[0], 12))[1]
        worth, noise = self._judge(change)
        surely = worth - WORTH_MOVING > float(stdtrit(self.freedom, level)) * noise
        return replace(change, worth=worth) if surely else None

    def make(self, change: _Change) -> None:
        """Carry a change out."""
        self.before, self.now = self._after(change, self.before), self._after(change, self.now)
        self._hold(change)

    def _hold(self, change: _Change) -> None:
        for held, cells in ((False, change.leave), (True, change.come)):
            for expert, device in cells:
                self.state.holds[expert, device] = held

    def _replica_exchange(self, device: int) -> tuple[float, _Change] | None:
        """The replica that a device needs least, for the expert that it would gain most by, and what that is worth."""
        state, experts, load = self.state, self.before.sum(axis=1), self.before.sum(axis=0)
        here = state.node == state.node[device]
        without, with_ = state.holds.copy(), state.holds.copy()
        without[:, device], with_[:, device] = False, True
        then = load - self.before + experts[:, None] * state.shares(np.where(without.any(axis=1, keepdims=True), without, state.holds))
        alone = state.holds[:, here].sum(axis=1) == 1
        lost = PRICE * (state.imbalance(load) - state.imbalance(then)) - alone * experts / state.nodes
        lost[~state.holds[:, device] | (state.holds.sum(axis=1) == 1)] = -np.inf
        out = int(np.argmax(np.round(lost, 12)))
        if np.isneginf(lost[out]):
            return None
        then_in = then[out] - self.before + experts[:, None] * state.shares(with_)
        gained = PRICE * (state.imbalance(then[out]) - state.imbalance(then_in)) + ~state.holds[:, here].any(axis=1) * experts / state.nodes
        gained[state.holds[:, device]] = -np.inf
        into = int(np.argmax(np.round(gained, 12)))
        change = _Change(leave=((out, device),), come=((into, device),), worth=0.0)
        return float(lost[out] + gained[into]), change

    def _swap(self, node: int) -> tuple[float, _Change] | None:
        """The best swap of an expert of the node's busiest device with one of another there: nothing changes between nodes."""
        state, load = self.state, self.before.sum(axis=0)
        devices = np.flatnonzero(state.node == node)
        busiest = int(devices[np.argmax((load / state.even)[devices])])
        now, best = float(state.imbalance(load)), None
        for other in devices[devices != busiest].tolist():
            give = np.flatnonzero(state.holds[:, busiest] & ~state.holds[:, other])
            take = np.flatnonzero(state.holds[:, other] & ~state.holds[:, busiest])
            if not give.size or not take.size:
                continue
            moved = self.before[give, busiest][:, None] - self.before[take, other][None, :]
            then = np.broadcast_to(load, (*moved.shape, len(load))).copy()
            then[..., busiest] -= moved
            then[..., other] += moved
            worth = np.round(PRICE * (now - state.imbalance(then)), 12)
            at = np.unravel_index(int(np.argmax(worth)), worth.shape)
            if best is None or worth[at] > best[0]:
                out, into = int(give[at[0]]), int(take[at[1]])
                cells = ((out, busiest), (into, other)), ((out, other), (into, busiest))
                best = (float(worth[at]), _Change(leave=cells[0], come=cells[1], worth=0.0))
        return best

    def _after(self, change: _Change, loads: Floats) -> Floats:
        """`[experts, devices]` loads once a change is made. A swapped replica takes its tokens along."""
        then = loads.copy()
        if len(change.come) == 2:
            for (expert, old), (_, new) in zip(change.leave, change.come, strict=True):
                then[expert, [old, new]] = 0.0, loads[expert, old]
            return then
        rows, shares = self._new_shares(change)
        then[rows] = loads[rows].sum(axis=1, keepdims=True) * shares
        return then

    def _new_shares(self, change: _Change) -> tuple[list[int], Floats]:
        """The experts of an exchange of replicas, and `[2, devices]` how their replicas share their tokens after it."""
        rows = [change.leave[0][0], change.come[0][0]]
        old = self.state.holds[rows].copy()
        self._hold(change)
        shares = self.state.shares(self.state.holds)[rows]
        self.state.holds[rows] = old
        return rows, shares

    def _judge(self, change: _Change) -> tuple[float, float]:
        """What a change is worth by the window now, and the standard error of that."""
        state, after = self.state, self._after(change, self.now)
        load, then = self.now.sum(axis=0), after.sum(axis=0)
        copies = np.zeros(len(self.now))
        if len(change.come) == 1:
            (out, device), (into, _) = change.leave[0], change.come[0]
            here = state.holds[:, state.node == state.node[device]]
            copies[out] -= float(here[out].sum() == 1) / state.nodes
            copies[into] += float(not here[into].any()) / state.nodes
        worth = PRICE * float(state.imbalance(load) - state.imbalance(then)) + float(copies @ self.now.sum(axis=1))
        slope, slope_then = (2.0 * (at / state.even - 1.0) / state.even / state.devices for at in (load, then))
        change_of_load = np.broadcast_to(slope - slope_then, self.now.shape).copy()  # what a pair more on each replica changes
        if len(change.come) == 2:
            for (expert, old), (_, new) in zip(change.leave, change.come, strict=True):
                change_of_load[expert, old] = slope[old] - slope_then[new]
        else:
            rows, shares = self._new_shares(change)
            change_of_load[rows] = slope - (shares @ slope_then)[:, None]
        of_pair = PRICE * change_of_load + copies[:, None]
        variance = float((of_pair**2 * self.now).sum() - (of_pair * self.now).sum() ** 2)
        return worth, float(np.sqrt(max(variance, 0.0) * self.dispersion / self.pairs))


def _dispersion(before: Floats, now: Floats) -> tuple[float, int]:
    """How much more two windows differ than counts would, at least 1: chi-square over its degrees of freedom, and those."""
    old, new = before.ravel(), now.ravel()
    seen = old + new > 0
    ratio = float(np.sqrt(new.sum() / old.sum()))
    terms = (old[seen] * ratio - new[seen] / ratio) ** 2 / (old[seen] + new[seen])
    freedom = max(1, int(seen.sum()) - 1)
    return max(1.0, float(terms.sum()) / freedom), freedom
