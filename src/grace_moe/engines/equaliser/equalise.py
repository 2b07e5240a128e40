"""The same number of slots on every device: spare ones are filled, devices that hold too many give some up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from grace_moe.engines.equaliser.exchange import even_out
from grace_moe.engines.equaliser.layer import PRICE, LayerState
from grace_moe.errors import UsageError
from grace_moe.placement import LayerPlacement, Placement, check_same_model
from grace_moe.trace import LoadProfile, RoutingTrace, expert_loads


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
        swaps = f"{_several(self.swapped, 'swap')} of experts inside nodes to even the load out, as engines share it"
        phases = ("decode_weights left out: the engine chooses replicas in decode as in prefill",) if self.one_phase else ()
        even = (*((swaps,) if self.swapped else ()), *phases)
        if not (self.added or self.dropped or self.moved):
            return even
        slots = int(self.placement.slots_per_device().max())
        did = f"{_several(self.added, 'replica')} more, {self.dropped} fewer and {_several(self.moved, 'move')} over all layers"
        text = f"{_several(slots, 'slot')} on every device took {did}"
        blind = () if self.by_trace else ("without a trace, all experts counted as equally loaded: give one to fill the slots well",)
        return (text, *blind, *even)


def equalise(
    placement: Placement, *, slots_per_device: int | None = None, trace: RoutingTrace | LoadProfile | None = None, two_phases: bool = False
) -> Equalised:
    """Give every device of every layer the same number of experts.

    Devices with spare slots get, one by one, the replica that is worth most: copies between nodes that it saves, and balance, when
    tokens take the nearest replica. Devices with too many drop the replicas that are worth least, then move their lightest experts to
    devices with room, on the same node where there is any. Layers that fit already are kept as they are, weights and all, but for
    `even_out` where a trace tells the loads.

    Args:
        slots_per_device: slots of each device; None = the most that any device holds now.
        trace: routing that tells loads and co-activation, or loads alone; best the one planned on.
        two_phases: whether the engine chooses replicas in decode apart. Else a choice of its own for decode is left out.

    Raises:
        UsageError: too few slots for the experts, or more than there are experts.
        MismatchError: the trace is of another model.
    """
    if trace is not None:
        check_same_model(placement, trace)
    slots = _slots(placement, slots_per_device)
    done: Counter[str] = Counter()
    layers = []
    loads = None if trace is None else expert_loads(trace)
    for index, layer in enumerate(placement.layers if two_phases else [replace(layer, decode_weights=()) for layer in placement.layers]):
        ids = trace.topk_ids[:, index] if isinstance(trace, RoutingTrace) else None
        of_layer = np.ones(placement.num_experts) if loads is None else loads[index].astype(float)
        layers.append(_equalised(LayerState(layer, placement.topology, of_layer, ids), slots, done))
    equal = replace(placement, layers=tuple(layers))
    final = equal if loads is None else even_out(equal, loads)
    changed = zip(equal.layers, final.layers, strict=True)
    return Equalised(
        placement=final,
        added=done["added"],
        dropped=done["dropped"],
        moved=done["moved"],
        swapped=sum(_differences(old, new) for old, new in changed) // 2,
        by_trace=trace is not None,
        one_phase=not two_phases and any(layer.decode_weights for layer in placement.layers),
    )


def _slots(placement: Placement, slots_per_device: int | None) -> int:
    """Slots of each device. Raises UsageError: not as many as the experts need, or more than they can use."""
    experts, devices = placement.num_experts, placement.topology.num_devices
    slots = int(placement.slots_per_device().max()) if slots_per_device is None else slots_per_device
    least = -(-experts // devices)
    if not least <= slots <= experts:
        raise UsageError(
            f"slots_per_device {slots}: {experts} experts on {devices} devices need {least} to {experts} a device, "
            "as no device holds an expert twice"
        )
    _check_memory(placement, slots)
    return slots


def _check_memory(placement: Placement, slots: int) -> None:
    """Raise UsageError where a plan was kept to the devices' memory, and one of them has no room for as many slots as the others."""
    limits = placement.provenance.get("options")
    size = limits.get("expert_bytes") if isinstance(limits, dict) else None
    if not isinstance(size, int):
        return
    stack = size * len(placement.layers)  # a slot in every layer
    for device in (device for node in placement.topology.nodes for device in node.devices):
        if device.memory_bytes is not None and slots * stack > device.memory_bytes:
            raise UsageError(
                f"{placement.source}: {device.name}: memory_bytes: room for {device.memory_bytes // stack} experts a layer, and "
                f"engines need equal slots, {slots} on every device; plan for copies with fewer --slots-per-device, or without it"
            )


def _differences(old: LayerPlacement, new: LayerPlacement) -> int:
    """Replicas of a layer that are not where they were."""
    return sum(len(set(now) - set(was)) for was, now in zip(old.devices_of_expert, new.devices_of_expert, strict=True))


def _equalised(state: LayerState, slots: int, done: Counter[str]) -> LayerPlacement:
    """The layer with `slots` experts on every device; counts what it did."""
    while (state.counts() > slots).any():
        _shed(state, int(np.argmax(state.counts() > slots)), slots, done)
    while (state.counts() < slots).any():
        _fill(state, slots, done)
    return state.placed()


def _fill(state: LayerState, slots: int, done: Counter[str]) -> None:
    """Add the most useful replica of all that fit. There is always one, as a device has room for at most every expert."""
    spare = np.flatnonzero(state.counts() < slots)
    worth = np.stack([PRICE * state.saved_imbalance(int(d), True) + state.saved[state.node[d]] for d in spare], axis=1)
    worth[state.holds[:, spare]] = -np.inf
    expert, index = np.unravel_index(int(np.argmax(np.round(worth, 12))), worth.shape)
    state.hold(int(expert), int(spare[index]), True)
    done["added"] += 1


def _shed(state: LayerState, device: int, slots: int, done: Counter[str]) -> None:
    """One expert less on a device that holds too many: a replica, else an expert that moves."""
    room = np.flatnonzero(state.counts() < slots)
    replicated = state.holds.sum(axis=1) > 1
    if not (state.holds[:, device] & replicated).any():
        if room.size:
            _move_lightest(state, device, room.tolist())
            done["moved"] += 1
            return
        device = int(np.argmax((state.holds & replicated[:, None]).any(axis=0)))  # all full: make room where some expert has a replica
    out = state.least_needed(device)
    assert out is not None
    state.hold(out, device, False)
    done["dropped"] += 1


def _move_lightest(state: LayerState, device: int, room: list[int]) -> None:
    """Move the lightest expert of a device to the least loaded of the devices with room, on its own node where one is."""
    load = state.loads @ state.shares(state.holds)
    expert = min(np.flatnonzero(state.holds[:, device]).tolist(), key=lambda e: (state.loads[e], e))
    to = min(room, key=lambda d: (state.node[d] != state.node[device], load[d], d))
    state.hold(expert, to, True)
    state.hold(expert, device, False)


def _several(number: int, noun: str) -> str:
    """`1 slot`, `2 slots`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
