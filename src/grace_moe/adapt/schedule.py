"""In what order experts move: nearest source first, one peer a device a round, in stages of layers that switch together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Layers that switch together, when all of their experts have arrived."""

    layers: tuple[int, ...]
    """Indices, ascending."""
    rounds: tuple[tuple[Move, ...], ...]
    """In a round, a device sends to at most one device and receives from at most one."""


def stages_of(new: Placement, old: Placement, *, first: Sequence[int] = ()) -> list[Stage]:
    """All moves from `old` to `new`, in stages; layers without moves are in none.

    An expert comes from a device of the target's node where one holds it; of several, from the one that has sent least so far. Layers share
    rounds where devices are free. A stage has no more rounds than the layer that takes most has alone, and so a device keeps no more
    experts that wait for their layers to switch.

    Args:
        first: indices of layers that go before the others, in this order (`Decision.first`).
    """
    sent = [0] * old.topology.num_devices
    order = dict.fromkeys((*first, *range(len(old.layers))))
    waiting = [moves for index in order if (moves := _moves_of_layer(new, old, index, sent))]
    most = max((_rounds_alone(moves) for moves in waiting), default=0)
    stages = []
    while waiting:
        rounds = _Rounds(most)
        later = [moves for moves in waiting if not rounds.take(moves)]
        layers = tuple(sorted({move.layer for moves in rounds.moves for move in moves}))
        stages.append(Stage(layers=layers, rounds=tuple(tuple(moves) for moves in rounds.moves if moves)))
        waiting = later
    return stages


class _Rounds:
    """Rounds that layers share: each move is in the first one in which both of its devices are free."""

    def __init__(self, count: int) -> None:
        self.moves: list[list[Move]] = [[] for _ in range(count)]
        self._busy: list[set[tuple[str, int]]] = [set() for _ in range(count)]

    def take(self, moves: Sequence[Move]) -> bool:
        """Add all moves of a layer, or none of them where one has no room."""
        busy = [set(ends) for ends in self._busy]
        places = []
        for move in moves:
            ends = {("from", move.source), ("to", move.target)}
            place = next((n for n, taken in enumerate(busy) if not taken & ends), None)
            if place is None:
                return False
            busy[place] |= ends
            places.append(place)
        self._busy = busy
        for place, move in zip(places, moves, strict=True):
            self.moves[place].append(move)
        return True


def _rounds_alone(moves: Sequence[Move]) -> int:
    """That one layer's moves take."""
    rounds = _Rounds(len(moves))
    rounds.take(moves)
    return sum(map(bool, rounds.moves))


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
