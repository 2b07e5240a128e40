"""SGLang: the file of `--init-expert-location`, out and in (read in sglang 0.5.23). It has a row for every decoder layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from grace_moe.engines.exported import Exported
from grace_moe.engines.imported import Hints
from grace_moe.engines.notes import several
from grace_moe.engines.slot_map import SlotMap, filler_row
from grace_moe.engines.slot_tables import matrix, slot_map
from grace_moe.errors import MismatchError, PlacementError
from grace_moe.files import dump_json, read_json

FIELD = "physical_to_logical_map"
"""The one key of an initial expert location; another makes SGLang refuse the file."""


def export_location(slots: SlotMap, num_hidden_layers: int | None = None) -> Exported:
    """The JSON file of `--init-expert-location`: a row for each decoder layer, those without experts filled in order.

    Args:
        num_hidden_layers: decoder layers of the model; None = up to the last with experts.

    Raises:
        MismatchError: a MoE layer beyond the model's layers.
    """
    last = max(slots.layer_ids)
    layers = last + 1 if num_hidden_layers is None else num_hidden_layers
    if last >= layers:
        raise MismatchError(
            f"{slots.source}: it plans layer {last}, but the model has decoder layers 0..{layers - 1}; give its own number of them"
        )
    rows = [filler_row(slots.num_slots, slots.num_experts) for _ in range(layers)]
    for layer_id, row in zip(slots.layer_ids, slots.physical_to_logical, strict=True):
        rows[layer_id] = row.tolist()
    ranks = slots.num_ranks
    notes = [] if num_hidden_layers is not None else [f"{several(layers, 'decoder layer')} assumed, up to the last planned: --model says"]
    return Exported(
        data=dump_json({FIELD: rows}),
        launch=(
            f"python -m sglang.launch_server --model-path MODEL --tp {ranks} --ep-size {ranks} --moe-a2a-backend deepep \\\n"
            f"  --ep-num-redundant-experts {slots.num_redundant} --init-expert-location PLAN --ep-dispatch-algorithm static"
        ),
        notes=tuple(notes),
    )


def import_location(path: Path, num_ranks: int, hints: Hints) -> SlotMap:
    """Read the JSON of an initial expert location. Rows that are in order (`filler_row`) count as dense layers, unless
    `hints.layer_ids` says which have experts.

    Raises:
        PlacementError: not such a file, or a broken map.
    """
    value, source = read_json(path, PlacementError), str(path)
    if not isinstance(value, dict) or set(value) != {FIELD}:
        raise PlacementError(source, FIELD, "missing, or not the only key", "give the JSON of --init-expert-location")
    table = matrix(value[FIELD], source, FIELD)
    experts = int(table.max()) + 1 if hints.num_experts is None else hints.num_experts
    layers = hints.layer_ids
    if layers is None:
        filler = np.array(filler_row(table.shape[1], experts), dtype=np.int32)
        planned = np.flatnonzero((table != filler).any(axis=1))
        layers = tuple(int(i) for i in (planned if planned.size else range(len(table))))
    if max(layers, default=0) >= len(table):
        raise PlacementError(source, FIELD, f"{len(table)} rows, and the model has a MoE layer {max(layers)}", "check the model")
    return slot_map(table[list(layers)], layer_ids=layers, num_experts=experts, num_ranks=num_ranks, source=source)
