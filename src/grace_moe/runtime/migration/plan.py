"""What a migration does, made from the new plan alike on every rank: stages of layers that switch together, and their moves in rounds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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

    placement: Placement
    """Once all layers have switched."""
    stages: tuple[Stage, ...]
    routes: Mapping[int, LayerRoute]
    """Of the layers that switch, by index."""
    reason: str
    gain: float
    """Copies per token that the decision expects to save."""


def proposal(placement: Placement, serving: Placement, *, reason: str, gain: float) -> bytes:
    """What rank 0 tells the others, as JSON: the layers that are another than in what serves, why, and what is hoped for.

    Args:
        gain: copies per token that moving is expected to save.
    """
    pairs = enumerate(zip(own_choices(placement), own_choices(serving), strict=True))
    layers = {index: asdict(new) for index, (new, old) in pairs if _differs(new, old)}
    return json.dumps({"reason": reason, "gain": gain, "layers": layers}).encode()


def own_choices(placement: Placement) -> tuple[LayerPlacement, ...]:
    """The layers, each with its replica choice said: layers of two placements can serve side by side."""
    return tuple(replace(layer, replica_choice=layer.replica_choice or placement.replica_choice) for layer in placement.layers)


def migration_plan(told: bytes, serving: Placement, routes: Mapping[int, LayerRoute], device: torch.device) -> MigrationPlan:
    """What this rank does by rank 0's bytes.

    Args:
        serving: with `own_choices`.
        routes: that serve, by the layer's own number.

    Raises:
        MismatchError: a device would need more slots than it has.
    """
    value = json.loads(told)
    changed = {
        int(index): LayerPlacement(**{name: _tuples(part) for name, part in layer.items()}) for index, layer in value["layers"].items()
    }
    placement = replace(serving, layers=tuple(changed.get(index, layer) for index, layer in enumerate(serving.layers)))
    rounds: dict[int, list[tuple[Move, ...]]] = {index: [] for index in changed}
    for moves in rounds_of(placement, serving):
        rounds[moves[0].layer].append(tuple(moves))
    at_once = tuple(index for index, moves in rounds.items() if not moves)
    stages = [Stage(layers=at_once, rounds=())] if at_once else []
    stages += [Stage(layers=(index,), rounds=tuple(moves)) for index, moves in rounds.items() if moves]
    new_routes = {}
    for index, layer in changed.items():
        old = routes[layer.layer_id]
        slots = arranged(slots_of(old), placement.experts_of_device(index))
        new_routes[index] = layer_route(layer, slots, placement, old.rank, seed=old.seed, device=device)
    return MigrationPlan(
        placement=placement,
        stages=tuple(stages),
        routes=new_routes,
        reason=value["reason"],
        gain=value["gain"],
    )


def _differs(new: LayerPlacement, old: LayerPlacement) -> bool:
    """Whether tokens would go another way: what a front-end is told does not count."""
    return replace(new, source_costs=()) != replace(old, source_costs=())


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, Sequence) and not isinstance(value, str) else value
