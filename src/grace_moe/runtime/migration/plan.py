"""What a migration does, made from the new plan alike on every rank: stages of layers that switch together, and routes."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from grace_moe.adapt import Move, Stage, stages_of
from grace_moe.placement import LayerPlacement, Placement
from grace_moe.runtime.dispatch.route import LayerRoute, layer_route
from grace_moe.runtime.migration.slots import arranged, slots_of


@dataclass(frozen=True, kw_only=True)
class MigrationPlan:
    """Of one rank."""

    layers: Mapping[int, LayerPlacement]
    """Those that switch, by index."""
    stages: tuple[Stage, ...]
    """The first one is of the layers without moves, if there are any."""
    routes: Mapping[int, LayerRoute]
    """Of the same layers."""
    reason: str
    gain: float
    """Copies per token that the decision expects to save."""


def proposal(placement: Placement, serving: Placement, *, reason: str, gain: float, first: Sequence[int] = ()) -> bytes:
    """What rank 0 tells the others: why and what is hoped for, all moves, and each layer that is another than in what serves.

    JSON, a line a layer, so that ranks can read one at a time; compressed, as it crosses the links between steps.

    Args:
        gain: copies per token that moving is expected to save.
        first: indices of layers that go before the others, in this order.
    """
    stages = [asdict(stage) for stage in stages_of(placement, serving, first=first)]
    lines: list[dict[str, Any]] = [{"reason": reason, "gain": gain, "stages": stages}]
    for index, (new, old) in enumerate(zip(own_choices(placement), own_choices(serving), strict=True)):
        if _differs(new, old):
            lines.append({"index": index, "layer": asdict(new)})
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
    first, *lines = zlib.decompress(told).splitlines()
    head = json.loads(first)
    stages = [_stage(value) for value in head["stages"]]
    moving = {layer for stage in stages for layer in stage.layers}
    layers: dict[int, LayerPlacement] = {}
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
    at_once = tuple(index for index in layers if index not in moving)
    if at_once:
        stages.insert(0, Stage(layers=at_once, rounds=()))
    return MigrationPlan(layers=layers, stages=tuple(stages), routes=new_routes, reason=head["reason"], gain=head["gain"])


def _stage(value: Mapping[str, Any]) -> Stage:
    rounds = tuple(tuple(Move(**move) for move in moves) for moves in value["rounds"])
    return Stage(layers=tuple(value["layers"]), rounds=rounds)


def _differs(new: LayerPlacement, old: LayerPlacement) -> bool:
    """Whether tokens would go another way: what a front-end is told does not count."""
    return replace(new, source_costs=()) != replace(old, source_costs=())


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, Sequence) and not isinstance(value, str) else value
