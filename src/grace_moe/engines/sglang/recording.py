"""SGLang: recorder dumps, loads and responses in (read in sglang 0.5.23).

SGLang numbers all decoder layers. Its recorder writes physical slots, `return_routed_experts` gives logical experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.engines.recordings.counts import Counts, profile_of_counts
from grace_moe.engines.recordings.imported import Hints, Imported
from grace_moe.engines.recordings.loads import Loads, loads_of_object, numbers_of_list, summed, two_dimensions, widened
from grace_moe.engines.recordings.responses import read_objects
from grace_moe.engines.recordings.torch_dumps import read_torch, torch_integers, torch_numbers
from grace_moe.engines.sglang.passes import Pass, read_pass, trace_of_passes
from grace_moe.engines.sglang.responses import import_responses
from grace_moe.errors import TraceError
from grace_moe.files import MAX_EXPERTS, bounded_counts

COUNT, MAP = "logical_count", "last_physical_to_logical_map"


def import_dump(paths: Sequence[Path], hints: Hints) -> Imported:
    """Recorder dumps (`.pt`, of modes stat, stat_approx, per_pass and per_token; those of several ranks together), `logical_count`s
    (`.pt` or `.json`), or responses with `meta_info.routed_experts` (`.json`, `.jsonl`).

    Raises:
        TraceError: not such a file, or damaged.
        UsageError: something of the model is unknown and needed.
    """
    source = str(paths[0])
    if paths[0].suffix in (".json", ".jsonl"):
        objects = list(read_objects(list(paths)))
        if objects and all(COUNT in value for _, value in objects):
            return _import_loads([piece for where, value in objects if (piece := loads_of_object(value, where))], hints, source)
        return import_responses(objects, paths, hints)
    counts: list[Loads] = []
    ranks: list[list[Pass]] = []
    num_experts = 0
    for path in paths:
        dump = read_torch(path)
        if not isinstance(dump, dict):
            problem = f"{type(dump).__name__} is not a recorder dump"
            raise TraceError(str(path), "dump", problem, "give what /dump_expert_distribution_record wrote")
        if COUNT in dump:
            counts.append(Loads(counts=two_dimensions(_numbers(dump[COUNT], str(path)), str(path), COUNT), layer_ids=None))
            continue
        of_slot = _map(dump, str(path))
        num_experts = max(num_experts, int(of_slot.max()) + 1)
        passes, loads = _read_records(dump, of_slot, str(path))
        ranks.append(passes)
        counts += [Loads(counts=load, layer_ids=None) for load in loads]
    if counts and any(ranks):
        raise TraceError(source, "records", "some of tokens and some of counts", "import dumps of one mode at a time")
    if counts:
        return _import_loads(counts, hints, source)
    return trace_of_passes(ranks, hints, hints.num_experts or num_experts, source)


def _import_loads(pieces: Sequence[Loads], hints: Hints, source: str) -> Imported:
    counts, layer_ids = summed(widened(pieces), source)
    return profile_of_counts(counts, hints, source, field=COUNT, layer_ids=layer_ids)


def _numbers(value: Any, source: str) -> Counts:
    """A tensor, or the same as lists."""
    return numbers_of_list(value, source, COUNT) if isinstance(value, list) else torch_numbers(value, source, COUNT)


def _map(dump: dict[str, Any], source: str) -> npt.NDArray[np.int64]:
    of_slot = torch_integers(dump.get(MAP), source, MAP, 2).astype(np.int64)
    if not of_slot.size or of_slot.min() < 0 or of_slot.max() >= MAX_EXPERTS:
        raise TraceError(source, MAP, "empty, or ids out of range", "record it again")
    return of_slot


def _read_records(dump: dict[str, Any], of_slot: npt.NDArray[np.int64], source: str) -> tuple[list[Pass], list[Counts]]:
    """The passes of mode per_token, or the counts of mode per_pass."""
    records = dump.get("records")
    if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
        raise TraceError(source, "records", "missing, or not a list of records", "record it again")
    passes, counts = [], []
    for index, record in enumerate(records):
        where = f"{source}: records[{index}]"
        if "topk_ids_of_layer" in record:
            passes.append(read_pass(record, of_slot, where, index))
        elif "global_physical_count" in record:
            counts.append(_logical_counts(record["global_physical_count"], of_slot, where))
        else:
            raise TraceError(where, "topk_ids_of_layer", "missing, and no global_physical_count", "record it again")
    return passes, counts


def _logical_counts(value: Any, of_slot: npt.NDArray[np.int64], where: str) -> npt.NDArray[np.int64]:
    physical = torch_integers(value, where, "global_physical_count", 2)
    physical = bounded_counts(physical, kind=TraceError, source=where, field="global_physical_count")
    if physical.shape != of_slot.shape:
        raise TraceError(where, "global_physical_count", f"shape {physical.shape}, and the map has {of_slot.shape}", "record it again")
    logical = np.zeros((len(of_slot), int(of_slot.max()) + 1), dtype=np.int64)
    np.add.at(logical, (np.arange(len(of_slot))[:, None], of_slot), physical)
    return logical
