"""In what order experts move: nearest source first, one peer a device a round, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from grace_moe.placement import Placement


@dataclass(frozen=True, kw_only=True)
class Move:
    """One device loads one expert of one layer from another."""

    layer: int
    """Index of the layer."""
    expert: int
    source: int
    """Device that holds the expert."""
    target: int
    """Device that loads it."""


def rounds_of(new: Placement, old: Placement, *, layer_by_layer: bool = True) -> list[list[Move]]:
    """All moves from `old` to `new`, in rounds: in a round, a device sends to at most one device and receives from at most one.

    An expert comes from a device of the target's node where one holds it; of several, from the one that has sent least so far.

    Args:
        layer_by_layer: a layer's moves are in consecutive rounds, so that it can switch before the next layer's begin to arrive. Else
            layers share rounds, the first ones first: more devices move at once where a layer moves few experts, and a device keeps those
            that have arrived until their layer switches.
    """
    sent = [0] * old.topology.num_devices
    rounds: list[list[Move]] = []
    layers = [_moves_of_layer(new, old, index, sent) for index in range(len(old.layers))]
    for waiting in layers if layer_by_layer else [list(chain.from_iterable(layers))]:
        while waiting:
            busy_sources: set[int] = set()
            busy_targets: set[int] = set()
            now, later = [], []
            for move in waiting:
                if move.source in busy_sources or move.target in busy_targets:
                    later.append(move)
                else:
                    now.append(move)
                    busy_sources.add(move.source)
                    busy_targets.add(move.target)
            rounds.append(now)
            waiting = later
    return rounds


def _moves_of_layer(new: Placement, old: Placement, index: int, sent: list[int]) -> list[Move]:
    """Adds to `sent` what each device sends."""
    node = old.topology.node_of_device
    moves = []
    for expert, (wanted, held) in enumerate(zip(new.layers[index].devices_of_expert, old.layers[index].devices_of_expert, strict=True)):
        for target in sorted(set(wanted) - set(held)):
            near = [device for device in held if node[device] == node[target]]
            source = min(near or held, key=lambda device: (sent[device], device))
            sent[source] += 1
            moves.append(Move(layer=index, expert=expert, source=source, target=target))
    return moves
