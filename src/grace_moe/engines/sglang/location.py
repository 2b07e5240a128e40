"""SGLang: the file of `--init-expert-location`, out and in (read in sglang 0.5.23). It has a row for every decoder layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from grace_moe.engines.backends import SGLANG, flags_of
from grace_moe.engines.exported import Exported
from grace_moe.engines.recordings.imported import Hints
from grace_moe.engines.recordings.notes import several
from grace_moe.engines.recordings.torch_dumps import read_torch, torch_numbers
from grace_moe.engines.slot_map import SlotMap, filler_row
from grace_moe.engines.slot_tables import matrix, slot_map
from grace_moe.errors import MismatchError, PlacementError, TraceError
from grace_moe.files import dump_json, read_json

FIELD = "physical_to_logical_map"
"""The one key of an initial expert location; another makes SGLang refuse the file."""
LOADS = "logical_count"
"""The other form of an initial expert location: loads, of which SGLang makes a map itself. Kept beside a map, it is not read."""


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
    backend, gains = flags_of(SGLANG, slots.backend, slots.source)
    assumed = (
        () if num_hidden_layers is not None else (f"{several(layers, 'decoder layer')} assumed, up to the last planned: --model says",)
    )
    return Exported(
        data=dump_json({FIELD: rows}),
        launch=(
            f"python -m sglang.launch_server --model-path MODEL --tp-size {ranks} --ep-size {ranks} \\\n"
            f"  --ep-num-redundant-experts {slots.num_redundant} --init-expert-location PLAN \\\n"
            f"  --moe-a2a-backend {backend}"
        ),
        notes=(*assumed, *gains),
    )


def import_location(path: Path, num_ranks: int, hints: Hints) -> SlotMap:
    """Read an initial expert location (`.json` or `.pt`). Every row is a layer with experts, unless `hints.layer_ids` says which have:
    dense layers are filled in order, and a plan may be in order too.

    Raises:
        PlacementError: not such a file, or a broken map.
    """
    source = str(path)
    value = _read(path)
    if not isinstance(value, dict) or FIELD not in value:
        alone = isinstance(value, dict) and LOADS in value
        mend = "its loads can be imported as a trace, without --topology" if alone else "give the file of --init-expert-location"
        raise PlacementError(source, FIELD, "missing", mend)
    if not set(value) <= {FIELD, LOADS}:
        raise PlacementError(source, FIELD, "not the only key", "give the file of --init-expert-location")
    table = matrix(value[FIELD], source, FIELD)
    experts = int(table.max()) + 1 if hints.num_experts is None else hints.num_experts
    layers = hints.layer_ids
    if layers is None:
        filler = np.array(filler_row(table.shape[1], experts), dtype=np.int32)
        in_order = np.flatnonzero((table == filler).all(axis=1))
        which = f"{several(len(in_order), 'row')} in order, first {in_order[:1].tolist()}"
        notes = (f"{which}: taken as layers with experts; if some are dense, --model or --layers says so",) if in_order.size else ()
        every = tuple(range(len(table)))
        return slot_map(table, hints, layer_ids=every, num_ranks=num_ranks, source=source, notes=notes)
    if max(layers) >= len(table):
        raise PlacementError(source, FIELD, f"{len(table)} rows, and the model has a MoE layer {max(layers)}", "check the model")
    return slot_map(table[list(layers)], hints, num_ranks=num_ranks, source=source)


def _read(path: Path) -> Any:
    """What the file holds, tensors as lists. Raises PlacementError."""
    if path.suffix != ".pt":
        return read_json(path, PlacementError)
    try:
        value = read_torch(path)
        if not isinstance(value, dict):
            return value
        return {
            name: item if isinstance(item, list) else torch_numbers(item, str(path), str(name)).tolist() for name, item in value.items()
        }
    except TraceError as error:
        raise PlacementError(error.source, error.field, "not a location that torch can load as plain data", "write it again") from error
