"""Loads from anywhere: how often each expert fired, as CSV, JSON, JSON lines, NumPy arrays or safetensors.

What is summed: files (such as one a rank), lines (such as one an iteration), and steps or shards before `[layers, experts]`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grace_moe.engines.recordings.coactivation import import_coactivation
from grace_moe.engines.recordings.counts import Counts, profile_of_counts
from grace_moe.engines.recordings.imported import Hints, Imported
from grace_moe.engines.recordings.load_arrays import read_arrays
from grace_moe.engines.recordings.load_tables import read_load_csv
from grace_moe.engines.recordings.responses import read_objects
from grace_moe.errors import TraceError
from grace_moe.files import MAX_EXPERTS, MAX_LAYER_ID, read_json

FIELDS = ("logical_count", "expert_load", "tokens_per_expert", "expert_counts", "counts")
"""What loads are called, in JSON and in archives."""
LAYER_FIELDS = ("layer_id", "layer", "layer_idx", "layer_number")
"""What the layer of a line is called. `layer_number` is Megatron's and counts from 1."""
_LAYER_KEY = re.compile(r"(?:layers?[._ ]?)?(\d{1,5})")


@dataclass(frozen=True, kw_only=True)
class Loads:
    """Loads of one file, line or object."""

    counts: Counts
    """`[layers, experts]`"""
    layer_ids: tuple[int, ...] | None
    """The model's own numbers of the layers; None = not told."""


def import_loads(paths: Sequence[Path], hints: Hints) -> Imported:
    """Loads of one model, summed over the files: `.csv` (`layer_id,expert_id,count`), `.json` and `.jsonl` (of `FIELDS`), `.npy`, `.npz`
    and `.safetensors`; or a JSON of loads with counts of pairs, planned on a trace drawn to match them (`coactivation`).

    Raises:
        TraceError: not such a file, or loads of different models.
        UsageError: `hints` name layers that the loads don't have.
    """
    source = str(paths[0])
    if len(paths) == 1 and paths[0].suffix == ".json" and (surrogate := import_coactivation(paths[0], hints)) is not None:
        return surrogate
    pieces = [piece for path in paths for piece in _pieces(path, hints)]
    if all(path.suffix == ".csv" for path in paths):
        pieces = widened(pieces)  # a rank may have none of the last experts
    counts, layer_ids = summed(pieces, source)
    imported = profile_of_counts(counts, hints, source, field="loads", layer_ids=layer_ids)
    if hints.num_experts is not None or not all(path.suffix == ".csv" for path in paths):
        return imported
    guessed = f"{counts.shape[1]} experts, as the highest number says: --num-experts, where there are more"
    return Imported(trace=imported.trace, notes=(*imported.notes, guessed))


def summed(pieces: Sequence[Loads], source: str) -> tuple[Counts, tuple[int, ...] | None]:
    """The sum of loads of one model. Raises TraceError where they differ in experts, or in layers that have no numbers."""
    if not pieces:
        raise TraceError(source, "loads", "none", f"give {' or '.join(FIELDS[:3])}")
    if len({piece.counts.shape[-1] for piece in pieces}) > 1 or len({piece.layer_ids is None for piece in pieces}) > 1:
        raise TraceError(source, "loads", "of different numbers of experts, or some without their layers", "import loads of one model")
    if pieces[0].layer_ids is None:
        if len({piece.counts.shape for piece in pieces}) > 1:
            raise TraceError(source, "layers", "loads differ in their number", "import loads of one model")
        return _sum([piece.counts for piece in pieces], source), None
    of_layer: dict[int, list[Counts]] = defaultdict(list)
    for piece in pieces:
        for layer, row in zip(piece.layer_ids or (), piece.counts, strict=True):
            of_layer[layer].append(row)
    layers = tuple(sorted(of_layer))
    return np.stack([_sum(of_layer[layer], source) for layer in layers]), layers


def widened(pieces: Sequence[Loads]) -> list[Loads]:
    """Each with as many experts as the widest has, for files that leave out experts at the end."""
    width = max((piece.counts.shape[1] for piece in pieces), default=0)
    return [Loads(counts=np.pad(piece.counts, ((0, 0), (0, width - piece.counts.shape[1]))), layer_ids=piece.layer_ids) for piece in pieces]


def loads_of_object(value: dict[str, Any], where: str) -> Loads | None:
    """The loads in a JSON object: a field of `FIELDS`, or a list for each layer under its number. None where there is neither."""
    field = next((name for name in FIELDS if name in value), None)
    if field is None:
        rows = {int(m[1]): item for key, item in value.items() if isinstance(item, list) and (m := _LAYER_KEY.fullmatch(key))}
        return _of_dict(rows, where, "layers") if rows else None
    if isinstance(value[field], dict):
        rows = {int(m[1]): item for key, item in value[field].items() if (m := _LAYER_KEY.fullmatch(key))}
        if len(rows) != len(value[field]) or not rows:
            raise TraceError(where, field, "not a list for each number of a layer", "give lists of counts by layer")
        return _of_dict(rows, where, field)
    array = numbers_of_list(value[field], where, field)
    if array.ndim == 1:
        return Loads(counts=array[None], layer_ids=(_layer_of(value, where),))
    counts, layer_ids = two_dimensions(array, where, field), _ids_of(value, where)
    return _numbered(counts, layer_ids, where)


def numbers_of_list(value: Any, where: str, field: str) -> Counts:
    """An array of lists of equally many numbers. Raises TraceError."""
    try:
        array = np.array(value)
    except ValueError as error:
        raise TraceError(where, field, "lists of different lengths", "give as many counts for each layer") from error
    if array.dtype.kind not in "iuf" or not 1 <= array.ndim <= 3 or not array.size:
        raise TraceError(where, field, "not lists of numbers", "give [layers, experts] counts")
    return array


def two_dimensions(array: Counts, source: str, field: str) -> Counts:
    """`[layers, experts]`, summed over steps or shards before. Raises TraceError."""
    if array.ndim not in (2, 3) or not array.size:
        raise TraceError(source, field, f"shape {array.shape} is not [layers, experts]", "sum it over what else it has")
    return array if array.ndim == 2 else _sum(list(array), source)


def _sum(arrays: Sequence[Counts], source: str) -> Counts:
    """The sum, as whole numbers where all are, and without wrapping."""
    if all(array.dtype.kind in "iu" for array in arrays):
        total = np.zeros(arrays[0].shape, dtype=np.float64)
        for array in arrays:
            total += array
        if total.max(initial=0) < 2**53 and total.min(initial=0) >= 0:
            return np.asarray(total.astype(np.int64))
        raise TraceError(source, "loads", "some negative, or too large to add up", "check what wrote them")
    return np.asarray(np.sum(np.stack([array.astype(np.float64) for array in arrays]), axis=0))


def _pieces(path: Path, hints: Hints) -> Iterator[Loads]:
    if path.suffix == ".csv":
        counts, layers = read_load_csv(path, hints.num_experts)
        yield Loads(counts=counts, layer_ids=layers)
    elif path.suffix in (".json", ".jsonl"):
        for where, value in _objects(path):
            piece = loads_of_object(value, where)
            if piece is None:
                raise TraceError(where, "loads", "none", f"name the counts {' or '.join(FIELDS[:3])}")
            yield piece
    else:
        arrays = read_arrays(path)
        field = next((name for name in FIELDS if name in arrays), "")
        if not field:
            raise TraceError(
                str(path), "loads", f"it has only {', '.join(sorted(arrays))[:80]}", f"name the array {' or '.join(FIELDS[:3])}"
            )
        own = arrays.get("layer_ids")
        layer_ids = None if own is None else tuple(int(layer) for layer in own.ravel())
        yield _numbered(two_dimensions(arrays[field], str(path), field), layer_ids, str(path))


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file; one that is lists of numbers alone is taken for `FIELDS[0]`."""
    if path.suffix == ".json":
        value = read_json(path, TraceError)
        if isinstance(value, list) and value and isinstance(value[0], list):
            return iter([(str(path), {FIELDS[0]: value})])
    return read_objects([path])


def _numbered(counts: Counts, layer_ids: tuple[int, ...] | None, where: str) -> Loads:
    if layer_ids is not None and (len(layer_ids) != len(counts) or len(set(layer_ids)) != len(counts)):
        raise TraceError(where, "layer_ids", f"{len(set(layer_ids))} numbers for {len(counts)} layers", "number each layer once")
    return Loads(counts=counts, layer_ids=layer_ids)


def _of_dict(rows: dict[int, Any], where: str, field: str) -> Loads:
    layers = tuple(sorted(rows))
    array = numbers_of_list([rows[layer] for layer in layers], where, field)
    if array.ndim != 2 or array.shape[1] > MAX_EXPERTS:
        raise TraceError(where, field, f"shape {array.shape} is not a list of counts for each layer", "give lists of counts by layer")
    return Loads(counts=array, layer_ids=layers)


def _layer_of(value: dict[str, Any], where: str) -> int:
    """The layer that a line names. Raises TraceError where it names none."""
    for name in LAYER_FIELDS:
        layer = value.get(name)
        if layer is None:
            continue
        first = 1 if name == "layer_number" else 0
        if type(layer) is not int or not first <= layer <= MAX_LAYER_ID:
            raise TraceError(where, name, f"{layer!r} is not a layer", f"give its number, from {first} on")
        return layer - first
    raise TraceError(where, " or ".join(LAYER_FIELDS), "missing, and the counts are of one layer", "say which")


def _ids_of(value: dict[str, Any], where: str) -> tuple[int, ...] | None:
    ids = value.get("layer_ids", value.get("layers"))
    if ids is None:
        return None
    if not isinstance(ids, list) or not all(type(layer) is int for layer in ids):
        raise TraceError(where, "layer_ids", "not a list of numbers of layers", "give one for each row, or none")
    return tuple(ids)
