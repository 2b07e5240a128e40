"""What a migration does, made from the new plan alike on every rank: stages of layers that switch together, and their moves in rounds."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from grace_moe.adapt import Move, rounds_of
from grace_moe.placement import LayerPlacement, Placement
from grace_moe.runtime.dispatch.route import LayerRoute, layer_route
from grace_moe.runtime.migration.slots import arranged, slots_of


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Layers that switch at one step boundary: those without moves together, each other alone."""

    layers: tuple[int, ...]
    """Indices."""
    rounds: tuple[tuple[Move, ...], ...]


@dataclass(frozen=True, kw_only=True)
class MigrationPlan:
    """Of one rank."""

    layers: Mapping[int, LayerPlacement]
    """Those that switch, by index."""
    stages: tuple[Stage, ...]
    routes: Mapping[int, LayerRoute]
    """Of the same layers."""
    reason: str
    gain: float
    """Copies per token that the decision expects to save."""


def proposal(placement: Placement, serving: Placement, *, reason: str, gain: float) -> bytes:
    """What rank 0 tells the others: why and what is hoped for, and each layer that is another than in what serves, with its moves.

    JSON, a line a layer, so that ranks can read one at a time; compressed, as it crosses the links between steps.

    Args:
        gain: copies per token that moving is expected to save.
    """
    rounds: dict[int, list[list[tuple[int, int, int]]]] = {}
    for moves in rounds_of(placement, serving):
        rounds.setdefault(moves[0].layer, []).append([(move.expert, move.source, move.target) for move in moves])
    lines: list[dict[str, Any]] = [{"reason": reason, "gain": gain}]
    for index, (new, old) in enumerate(zip(own_choices(placement), own_choices(serving), strict=True)):
        if _differs(new, old):
            lines.append({"index": index, "layer": asdict(new), "rounds": rounds.get(index, [])})
    return zlib.compress("\n".join(map(json.dumps, lines)).encode())


def own_choices(placement: Placement) -> tuple[LayerPlacement, ...]:
    """The layers, each with its replica choice said: layers of two placements can serve side by side."""
    return tuple(replace(layer, replica_choice=layer.replica_choice or placement.replica_choice) for layer in placement.layers)


def migration_plan(
    told: bytes, like: Placement, routes: Mapping[int, LayerRoute], device: torch.device, *, before_layer: Callable[[int], object]
) -> MigrationPlan:
    """What this rank does by rank 0's bytes.

    Args:
        like: a placement of the model on these ranks; its layers do not count.
        routes: that serve, by the layer's own number.
        before_layer: called before each layer, with how many came before: a layer takes milliseconds of the interpreter.

    Raises:
        MismatchError: a device would need more slots than it has.
    """
    head, *lines = zlib.decompress(told).splitlines()
    layers: dict[int, LayerPlacement] = {}
    at_once: list[int] = []
    stages: list[Stage] = []
    new_routes: dict[int, LayerRoute] = {}
    for number, line in enumerate(lines):
        before_layer(number)
        value = json.loads(line)
        index: int = value["index"]
        layers[index] = layer = LayerPlacement(**{name: _tuples(part) for name, part in value["layer"].items()})
        old = routes[layer.layer_id]
        alone = replace(like, layers=(layer,))
        slots = arranged(slots_of(old), alone.experts_of_device(0))
        new_routes[index] = layer_route(layer, slots, alone, old.rank, seed=old.seed, device=device)
        if value["rounds"]:
            stages.append(Stage(layers=(index,), rounds=tuple(_round(index, moves) for moves in value["rounds"])))
        else:
            at_once.append(index)
    if at_once:
        stages.insert(0, Stage(layers=tuple(at_once), rounds=()))
    return MigrationPlan(layers=layers, stages=tuple(stages), routes=new_routes, **json.loads(head))


def _round(layer: int, moves: Sequence[Sequence[int]]) -> tuple[Move, ...]:
    return tuple(Move(layer=layer, expert=expert, source=source, target=target) for expert, source, target in moves)


def _differs(new: LayerPlacement, old: LayerPlacement) -> bool:
    """Whether tokens would go another way: what a front-end is told does not count."""
    return replace(new, source_costs=()) != replace(old, source_costs=())


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, Sequence) and not isinstance(value, str) else value
