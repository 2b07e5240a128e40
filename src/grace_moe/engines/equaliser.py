"""The slot equaliser: from any placement to one with equal slots on every device, as engines need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.engines.exported import several
from grace_moe.errors import UsageError
from grace_moe.placement import LayerPlacement, Placement, check_same_model
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace, expert_loads

PRICE = 4.0
"""Copies per token that a unit of the devices' squared relative imbalance is worth: as in planning (`planning.grace`)."""
MAX_TOKENS = 16_384
"""Tokens that tell which replica saves most copies; more change little and cost time."""

WORTH_MOVING = 0.01
"""Copies per token that an exchange must be worth in a running engine: below it, moving the weights costs more than it brings."""
WORTH_PLACING = 0.0005
"""The same where nothing is loaded yet."""
MOST_MOVES, MOST_SWAPS = 16, 64

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, kw_only=True)
class Equalised:
    """A placement with equal slots, and what that took."""

    placement: Placement
    added: int
    """Replicas added, all layers."""
    dropped: int
    """Replicas dropped, all layers."""
    moved: int
    """Experts without a replica that moved to another device, all layers."""
    swapped: int
    """Swaps of two experts between devices of a node that evened the load out, all layers; none without a trace."""
    by_trace: bool
    """Whether loads and co-activation of a trace told which; else all experts counted alike."""
    one_phase: bool = False
    """Whether a choice of its own for decode was left out: engines choose alike in both phases."""

    def notes(self) -> tuple[str, ...]:
        """What was changed, for people; nothing where nothing was."""
        swaps = f"{several(self.swapped, 'swap')} of experts inside nodes to even the load out, as engines share it"
        phases = ("decode_weights left out: the engine chooses replicas in decode as in prefill",) if self.one_phase else ()
        even = (*((swaps,) if self.swapped else ()), *phases)
        if not (self.added or self.dropped or self.moved):
            return even
        slots = int(self.placement.slots_per_device().max())
        did = f"{several(self.added, 'replica')} more, {self.dropped} fewer and {several(self.moved, 'move')} over all layers"
        text = f"{several(slots, 'slot')} on every device took {did}"
        blind = () if self.by_trace else ("without a trace, all experts counted as equally loaded: give one to fill the slots well",)
        return (text, *blind, *even)


def equalise(placement: Placement, *, slots_per_device: int | None = None, trace: RoutingTrace | None = None) -> Equalised:
    """Give every device of every layer the same number of experts.

    Devices with spare slots get, one by one, the replica that is worth most: copies between nodes that it saves, and balance, when
    tokens take the nearest replica. Devices with too many drop the replicas that are worth least, then move their lightest experts to
    devices with room, on the same node where there is any. Layers that fit already are kept as they are, weights and all, but for
    `even_out` where a trace tells the loads. A choice of its own for decode is left out.

    Args:
        slots_per_device: slots of each device; None = the most that any device holds now.
        trace: routing that tells loads and co-activation, best the one planned on.

    Raises:
        UsageError: too few slots for the experts, or more than there are experts.
        MismatchError: the trace is of another model.
    """
    topology, experts = placement.topology, placement.num_experts
    if trace is not None:
        check_same_model(placement, trace)
    slots = int(placement.slots_per_device().max()) if slots_per_device is None else slots_per_device
    least = -(-experts // topology.num_devices)
    if not least <= slots <= experts:
        raise UsageError(
            f"slots_per_device {slots}: {experts} experts on {topology.num_devices} devices need {least} to {experts} a device, "
            "as no device holds an expert twice"
        )
    one_phase = any(layer.decode_weights for layer in placement.layers)
    done: Counter[str] = Counter()
    layers = []
    for index, layer in enumerate(replace(layer, decode_weights=()) for layer in placement.layers):
        ids = None if trace is None else trace.topk_ids[:, index]
        loads = np.ones(experts) if ids is None else np.bincount(ids[ids >= 0].ravel(), minlength=experts).astype(float)
        layers.append(_Layer(layer, topology, slots, loads, ids).equalised(done))
    equal = replace(placement, layers=tuple(layers))
    final = equal if trace is None else even_out(equal, expert_loads(trace))
    changed = zip(equal.layers, final.layers, strict=True)
    return Equalised(
        placement=final,
        added=done["added"],
        dropped=done["dropped"],
        moved=done["moved"],
        swapped=sum(_differences(old, new) for old, new in changed) // 2,
        by_trace=trace is not None,
        one_phase=one_phase,
    )


def rebalance(placement: Placement, loads: npt.NDArray[np.integer[Any]], *, most: int = MOST_MOVES) -> Placement:
    """Follow a running engine's own loads, and leave the rest of the plan alone.

    A replica gives its slot to another expert's on the same device as long as that is worth more, in balance and in tokens kept on
    their node, than it costs; then experts change places between devices of a node, where that is worth moving them. Experts never
    lose their last replica, and no device changes its number of slots.

    Args:
        loads: `[layers, experts]` tokens that each expert got lately. A layer without any is kept.
        most: exchanges of either kind in a layer, at most.
    """

    def follow(layer: _Layer) -> None:
        layer.exchange_replicas(most)
        layer.swap_inside_nodes(WORTH_MOVING, most)

    return _changed(placement, loads, follow)


def even_out(placement: Placement, loads: npt.NDArray[np.integer[Any]]) -> Placement:
    """Swap experts between devices of a node until the devices are even, for engines whose nearest replicas share tokens evenly
    whatever the plan's weights. What crosses between nodes stays the same.

    Args:
        loads: `[layers, experts]` tokens of the trace that was planned on.
    """
    return _changed(placement, loads, lambda layer: layer.swap_inside_nodes(WORTH_PLACING, MOST_SWAPS))


def _differences(old: LayerPlacement, new: LayerPlacement) -> int:
    """Replicas of a layer that are not where they were."""
    return sum(len(set(now) - set(was)) for was, now in zip(old.devices_of_expert, new.devices_of_expert, strict=True))


def _changed(placement: Placement, loads: npt.NDArray[np.integer[Any]], change: Callable[[_Layer], None]) -> Placement:
    layers = []
    for old, row in zip(placement.layers, loads, strict=True):
        layer = _Layer(old, placement.topology, 0, row.astype(float))
        if row.sum():
            change(layer)
        layers.append(layer.placed())
    return replace(placement, layers=tuple(layers))


class _Layer:
    """One layer on its way to equal slots."""

    def __init__(self, layer: LayerPlacement, topology: Topology, slots: int, loads: Floats, ids: Ids | None = None) -> None:
        """`loads` `[experts]` of any scale; `ids` `[tokens, k]` choices, None = co-activation unknown."""
        self.layer, self.slots = layer, slots
        self.node = topology.node_of_device
        self.nodes, self.devices = topology.num_nodes, topology.num_devices
        self.even = topology.relative_speed / topology.relative_speed.sum()
        self.devices_of_node = np.bincount(self.node, minlength=self.nodes)
        self.holds = np.zeros((len(loads), self.devices), dtype=bool)
        for expert, devices in enumerate(layer.devices_of_expert):
            self.holds[expert, list(devices)] = True
        self.before = self.holds.copy()
        self.home = self.node[[devices[0] for devices in layer.devices_of_expert]]
        self.loads = loads / max(float(loads.sum()), 1.0)
        self.ids = np.zeros((0, 1), dtype=np.int64) if ids is None else ids[:: max(1, -(-len(ids) // MAX_TOKENS))].astype(np.int64)
        self.saved = np.stack([self._copies_saved(node) for node in range(self.nodes)])

    def equalised(self, done: Counter[str]) -> LayerPlacement:
        """The layer with `slots` experts on every device; counts what it did."""
        while (self._counts() > self.slots).any():
            self._shed(int(np.argmax(self._counts() > self.slots)), done)
        while (self._counts() < self.slots).any():
            self._fill(done)
        return self.placed()

    def exchange_replicas(self, most: int) -> None:
        """Give the slots of up to `most` replicas to other experts on their devices, as long as it is worth moving the weights."""
        for _ in range(most):
            best: tuple[float, int, int, int] | None = None
            for device in range(self.devices):
                out = self._least_needed(device)
                if out is None:
                    continue
                lost = self._worth_of_dropping(device)[out]
                self.holds[out, device] = False
                gained = PRICE * self._saved_imbalance(device, True) + self._upper_saving(device)
                self.holds[out, device] = True
                gained[self.holds[:, device]] = -np.inf
                into = int(np.argmax(np.round(gained, 12)))
                worth = float(gained[into] + lost)
                if worth > WORTH_MOVING and (best is None or worth > best[0] + 1e-12):
                    best = (worth, device, out, into)
            if best is None:
                break
            _, device, out, into = best
            self.holds[out, device], self.holds[into, device] = False, True

    def swap_inside_nodes(self, at_least: float, most: int) -> None:
        """Up to `most` rounds of a swap in each node, as long as each is worth so much."""
        for _ in range(most):
            if not max([self._swap_inside(node, at_least) for node in range(self.nodes)]):
                break

    def _swap_inside(self, node: int, at_least: float) -> bool:
        """Swap an expert of the node's busiest device with one of another there, where that is worth it. The node holds the same
        experts as before, and each replica the same tokens: nothing changes between nodes."""
        devices = np.flatnonzero(self.node == node)
        of_replica = self.loads[:, None] * self._shares(self.holds)
        load = of_replica.sum(axis=0)
        busiest = devices[int(np.argmax((load / self.even)[devices]))]
        now, best = float(self._imbalance(load)), None
        for other in devices[devices != busiest]:
            give = np.flatnonzero(self.holds[:, busiest] & ~self.holds[:, other])
            take = np.flatnonzero(self.holds[:, other] & ~self.holds[:, busiest])
            if not give.size or not take.size:
                continue
            moved = of_replica[give, busiest][:, None] - of_replica[take, other][None, :]
            then = np.broadcast_to(load, (*moved.shape, len(load))).copy()
            then[..., busiest] -= moved
            then[..., other] += moved
            imbalance = np.round(self._imbalance(then), 12)
            at = np.unravel_index(int(np.argmin(imbalance)), imbalance.shape)
            if best is None or imbalance[at] < best[0]:
                best = (float(imbalance[at]), int(other), int(give[at[0]]), int(take[at[1]]))
        if best is None or PRICE * (now - best[0]) <= at_least:
            return False
        _, other, out, into = best
        self.holds[out, [busiest, other]] = [False, True]
        self.holds[into, [busiest, other]] = [True, False]
        return True

    def placed(self) -> LayerPlacement:
        """As a layer: experts held as before keep their weights, the others' replicas share evenly."""
        devices, weights = [], []
        for expert, (old, shares) in enumerate(zip(self.layer.devices_of_expert, self.layer.replica_weights, strict=True)):
            if (self.before[expert] == self.holds[expert]).all():
                devices.append(old)
                weights.append(shares)
                continue
            held = np.flatnonzero(self.holds[expert]).tolist()
            held.sort(key=lambda device: (device not in old, old.index(device) if device in old else device))  # the primary stays first
            devices.append(tuple(held))
            weights.append((1.0 / len(held),) * len(held))
        return replace(self.layer, devices_of_expert=tuple(devices), replica_weights=tuple(weights), decode_weights=())

    def _counts(self) -> npt.NDArray[np.int64]:
        return np.asarray(self.holds.sum(axis=0))

    def _shares(self, holds: npt.NDArray[np.bool_]) -> Floats:
        """`[experts, devices]` part of each expert's tokens that each device computes when tokens take a replica on their own
        device, else one on their node, else any: a node's replicas share its tokens, all share those of nodes without one.

        (A token whose own device has one of its node's replicas takes that: the node's replicas come out even all the same.)
        """
        held = np.stack([holds[:, self.node == node].sum(axis=1) for node in range(self.nodes)], axis=1)  # [experts, nodes]
        without = ((held == 0) * self.devices_of_node).sum(axis=1)
        near = self.devices_of_node / np.maximum(held, 1)
        each = near[:, self.node] + (without / np.maximum(held.sum(axis=1), 1))[:, None]
        return np.asarray(holds * each / self.devices)

    def _imbalance(self, loads: Floats) -> Floats:
        """`[...]` squared relative deviation of loads `[..., devices]` from what their speed would take."""
        return np.asarray(((loads / self.even - 1.0) ** 2).mean(axis=-1))

    def _saved_imbalance(self, device: int, held: bool) -> Floats:
        """`[experts]` imbalance that each expert saves by being held on a device, or by not being held there."""
        shares = self._shares(self.holds)
        changed = self.holds.copy()
        changed[:, device] = held
        now = self.loads @ shares
        then = now + self.loads[:, None] * (self._shares(changed) - shares)
        return np.asarray(self._imbalance(now) - self._imbalance(then))

    def _copies_saved(self, node: int) -> Floats:
        """`[experts]` copies per token that a replica on a node saves: of the tokens from there, those that visit another node for
        this expert alone."""
        experts = len(self.holds)
        if not len(self.ids) or self.nodes == 1:
            return np.zeros(experts)
        here = self.holds[:, self.node == node].any(axis=1)
        visited = np.where(here, node, self.home)[self.ids]
        away = (self.ids >= 0) & (visited != node)
        tokens = np.broadcast_to(np.arange(len(self.ids))[:, None], visited.shape)
        reasons = np.bincount((tokens * self.nodes + visited)[away], minlength=len(self.ids) * self.nodes)
        alone = away & (reasons[tokens * self.nodes + visited] == 1)
        return np.asarray(np.bincount(self.ids[alone], minlength=experts) / (len(self.ids) * self.nodes))

    def _hold(self, expert: int, device: int, held: bool) -> None:
        node = self.node[device]
        self.holds[expert, device] = held
        if not self.holds[expert, self.node == self.home[expert]].any():
            self.home[expert] = self.node[np.argmax(self.holds[expert])]
            self.saved = np.stack([self._copies_saved(n) for n in range(self.nodes)])
        else:
            self.saved[node] = self._copies_saved(int(node))

    def _fill(self, done: Counter[str]) -> None:
        """Add the most useful replica of all that fit. There is always one, as a device has room for at most every expert."""
        spare = np.flatnonzero(self._counts() < self.slots)
        worth = np.stack([PRICE * self._saved_imbalance(int(d), True) + self.saved[self.node[d]] for d in spare], axis=1)
        worth[self.holds[:, spare]] = -np.inf
        expert, index = np.unravel_index(int(np.argmax(np.round(worth, 12))), worth.shape)
        self._hold(int(expert), int(spare[index]), True)
        done["added"] += 1

    def _shed(self, device: int, done: Counter[str]) -> None:
        """One expert less on a device that holds too many: a replica, else an expert that moves."""
        counts = self._counts()
        replicated = self.holds.sum(axis=1) > 1
        if not (self.holds[:, device] & replicated).any() and (counts < self.slots).any():
            load = self.loads @ self._shares(self.holds)
            expert = min(np.flatnonzero(self.holds[:, device]).tolist(), key=lambda e: (self.loads[e], e))
            room = np.flatnonzero(counts < self.slots).tolist()
            to = min(room, key=lambda d: (self.node[d] != self.node[device], load[d], d))
            self._hold(expert, to, True)
            self._hold(expert, device, False)
            done["moved"] += 1
            return
        if not (self.holds[:, device] & replicated).any():  # all full: make room elsewhere, where some expert has a replica
            device = int(np.argmax((self.holds & replicated[:, None]).any(axis=0)))
        out = self._least_needed(device)
        assert out is not None
        self._hold(out, device, False)
        done["dropped"] += 1

    def _least_needed(self, device: int) -> int | None:
        """The expert whose replica on a device is worth least; None where it holds no replica."""
        worth = self._worth_of_dropping(device)
        return None if np.isneginf(worth).all() else int(np.argmax(np.round(worth, 12)))

    def _worth_of_dropping(self, device: int) -> Floats:
        """`[experts]` what it is worth (mostly less than 0) to drop each replica on a device; -inf where there is none to drop."""
        alone = self.holds[:, self.node == self.node[device]].sum(axis=1) == 1
        worth: Floats = PRICE * self._saved_imbalance(device, False) - alone * self.loads / self.nodes
        worth[~self.holds[:, device] | (self.holds.sum(axis=1) == 1)] = -np.inf
        return worth

    def _upper_saving(self, device: int) -> Floats:
        """`[experts]` tokens, as a part of all, that a first replica on a device's node keeps there, where co-activation is unknown."""
        return np.asarray(~self.holds[:, self.node == self.node[device]].any(axis=1) * self.loads / self.nodes)
