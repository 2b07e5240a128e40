"""Slot maps in the forms that are proposed for vLLM: by slot or by expert, of each layer or of all alike."""

from __future__ import annotations

from typing import Any

import numpy as np

from grace_moe.engines.recordings.imported import Hints
from grace_moe.engines.slot_map import IntMatrix
from grace_moe.engines.slot_tables import MAX_LAYERS, matrix
from grace_moe.errors import PlacementError

BY_SLOT, BY_EXPERT = "physical_to_logical_map", "expert_to_ep_rank"
_FORMS = f"give [[expert of each slot], ...] by MoE layer, [expert of each slot] for all, or {{{BY_EXPERT!r}: [rank of each expert]}}"


def read_map(value: Any, num_ranks: int, hints: Hints, source: str) -> tuple[IntMatrix, tuple[int, ...] | None]:
    """`[MoE layers, slots]` expert of each slot, and the layers' numbers where they are known.

    Taken are lists of lists (a MoE layer each), one list (of all MoE layers alike), either of them under `physical_to_logical_map`, lists
    by the number of a layer, and `expert_to_ep_rank` in the same forms: the rank that each expert is on.

    Raises:
        PlacementError: another form, or one list and nobody says how many layers there are.
    """
    by_expert = False
    if isinstance(value, dict) and len(value) == 1 and next(iter(value)) in (BY_SLOT, BY_EXPERT):
        by_expert = BY_EXPERT in value
        value = value[BY_EXPERT if by_expert else BY_SLOT]
    layer_ids = hints.layer_ids
    if isinstance(value, dict) and value and all(str(key).isdecimal() and len(str(key)) < 6 for key in value):
        rows = {int(key): row for key, row in value.items()}
        layers = tuple(sorted(rows))
        if layer_ids is None or layers != tuple(range(len(layer_ids))):
            layer_ids = _agreed(layers, hints, source)
        value = [rows[layer] for layer in layers]
    elif isinstance(value, list) and value and not isinstance(value[0], list):
        value = [value] * _number_of_layers(hints, source)
    if not isinstance(value, list):
        raise PlacementError(source, "map", f"{type(value).__name__} is not a list of lists", _FORMS)
    table = matrix(value, source, BY_EXPERT if by_expert else "map")
    return (_slots_of_ranks(table, num_ranks, source) if by_expert else table), layer_ids


def _agreed(layers: tuple[int, ...], hints: Hints, source: str) -> tuple[int, ...]:
    """The numbers in the file. Raises PlacementError where the model has other layers."""
    if hints.layer_ids is not None and hints.layer_ids != layers:
        problem = f"{list(layers)[:5]} are not the model's {list(hints.layer_ids)[:5]}"
        raise PlacementError(source, "layers", problem, "number MoE layers from 0, or as the model does")
    return layers


def _number_of_layers(hints: Hints, source: str) -> int:
    if hints.layer_ids is None:
        raise PlacementError(source, "map", "one list for all layers, and it doesn't say how many there are", "give --model or --layers")
    return min(len(hints.layer_ids), MAX_LAYERS)


def _slots_of_ranks(ranks: IntMatrix, num_ranks: int, source: str) -> IntMatrix:
    """The map of `[layers, experts]` ranks: a rank's experts ascend. Raises PlacementError: ranks that hold more than others, or none."""
    for layer, row in enumerate(ranks):
        held = np.bincount(row, minlength=num_ranks)
        if len(held) > num_ranks or held.min() != held.max():
            problem = f"ranks hold {held.min()} to {held.max()} experts, of ranks 0..{len(held) - 1}"
            raise PlacementError(source, f"{BY_EXPERT}[{layer}]", problem, f"give each of {num_ranks} ranks as many")
    return np.argsort(ranks, axis=1, kind="stable").astype(np.int32)
