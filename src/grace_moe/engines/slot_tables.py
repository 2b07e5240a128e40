"""Reading slot maps that engines write: lists of lists of experts, checked before use."""

from __future__ import annotations

from typing import Any

import numpy as np

from grace_moe.engines.recordings.imported import Hints
from grace_moe.engines.recordings.layers import numbers_of_rows
from grace_moe.engines.slot_map import MAX_SLOTS, IntMatrix, SlotMap
from grace_moe.errors import PlacementError

_MEND = "give the map as the engine reads it"
MAX_LAYERS = 10_000


def matrix(value: Any, source: str, field: str) -> IntMatrix:
    """`[layers, slots]` of a list of equally long lists of expert ids.

    Raises:
        PlacementError: anything else, or over `MAX_LAYERS` x `MAX_SLOTS`.
    """
    if not isinstance(value, list) or not value or not all(isinstance(row, list) for row in value):
        raise PlacementError(source, field, "not a list of lists", _MEND)
    width = len(value[0])
    if not 1 <= width <= MAX_SLOTS or len(value) > MAX_LAYERS:
        raise PlacementError(source, field, f"{len(value)} layers of {width} slots are over the limit, or none", _MEND)
    for index, row in enumerate(value):
        if len(row) != width:
            raise PlacementError(source, f"{field}[{index}]", f"{len(row)} slots, and row 0 has {width}", "every layer has the same number")
        if not all(type(expert) is int and 0 <= expert <= 32_766 for expert in row):
            raise PlacementError(source, f"{field}[{index}]", "not all are expert ids", _MEND)
    return np.array(value, dtype=np.int32)


def slot_map(
    table: IntMatrix,
    hints: Hints,
    *,
    num_ranks: int,
    source: str,
    layer_ids: tuple[int, ...] | None = None,
    notes: tuple[str, ...] = (),
) -> SlotMap:
    """The map of a table of MoE layers; as many experts as it names, where `hints` don't say.

    Args:
        layer_ids: the layers' numbers; None = those of `hints`, else they count from 0.

    Raises:
        PlacementError: a broken map, or another number of layers.
        UsageError: fewer layers than the model has, and neither it nor its config says which.
    """
    numbers = hints.layer_ids if layer_ids is None else layer_ids
    if numbers is not None and len(numbers) != len(table):
        raise PlacementError(source, "layers", f"{len(table)} rows, and the model has {len(numbers)} MoE layers", "check the model")
    if numbers is None:
        numbers = numbers_of_rows(len(table), hints, source)
        notes = (*notes, "MoE layers are numbered from 0, as the map has no numbers: --model or --layers says which they are")
    return SlotMap(
        physical_to_logical=table,
        layer_ids=numbers,
        num_experts=int(table.max()) + 1 if hints.num_experts is None else hints.num_experts,
        num_ranks=num_ranks,
        source=source,
        notes=notes,
    )
