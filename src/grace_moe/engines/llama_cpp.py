"""llama.cpp: the CSV of its `moe-trace` example, a row `layer,expert` for each choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from grace_moe.engines.counts import layers_of_counts
from grace_moe.engines.imported import Hints, Imported
from grace_moe.engines.requests import RoutedRequest, trace_of_requests
from grace_moe.engines.slot_tables import MAX_LAYERS
from grace_moe.errors import TraceError
from grace_moe.files import read_bytes

MAX_CSV_BYTES = 2 * 2**30


def import_csv(paths: Sequence[Path], hints: Hints) -> Imported:
    """Read `moe-trace` CSV files. With k known (`hints.top_k`), the rows of a layer in a batch are its tokens, k rows each; else counts.

    llama.cpp computes its last layer for the last tokens of a batch alone: a layer with fewer tokens than the batch has has the last.

    Raises:
        TraceError: not such a file, or rows that don't make whole tokens.
        UsageError: the number of experts is unknown.
    """
    experts = hints.need("num_experts", "the CSV doesn't say how many experts there are")
    pieces, requests, source = [], [], str(paths[0])
    for path in paths:
        table = _table(path, experts)
        pieces.append(table)
        if hints.top_k is not None:
            requests += [RoutedRequest(topk_ids=ids) for ids in _batches(table, hints.top_k, str(path))]
    if hints.top_k is None:
        both = np.concatenate(pieces)
        counts = np.zeros((int(both[:, 0].max()) + 1, experts), dtype=np.int64)
        np.add.at(counts, (both[:, 0], both[:, 1]), 1)
        imported = layers_of_counts(counts, hints, source)
        return Imported(trace=imported.trace, notes=(*imported.notes, "give --top-k, or --model, to import tokens from this CSV"))
    depth = max(ids.topk_ids.shape[1] for ids in requests)
    whole = [
        RoutedRequest(topk_ids=np.pad(r.topk_ids, ((0, 0), (0, depth - r.topk_ids.shape[1]), (0, 0)), constant_values=-1)) for r in requests
    ]
    imported = trace_of_requests(whole, hints, num_experts=experts, source=source)
    return Imported(trace=imported.trace, notes=(*imported.notes, "the CSV names no requests: each batch counts as one"))


def _table(path: Path, num_experts: int) -> npt.NDArray[np.int64]:
    """`[rows, 2]` layer and expert."""
    lines = read_bytes(path, TraceError, MAX_CSV_BYTES).splitlines()
    if lines and lines[0].strip().lower().replace(b" ", b"") == b"layer,expert":
        lines = lines[1:]
    try:
        table = np.array([[int(number) for number in line.split(b",")] for line in lines if line.strip()], dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise TraceError(str(path), "rows", f"not whole numbers layer,expert ({error})", "give the CSV of llama.cpp's moe-trace") from error
    if table.ndim != 2 or table.shape[1] != 2:
        raise TraceError(str(path), "rows", "none, or not two columns", "give the CSV of llama.cpp's moe-trace")
    if table.min() < 0 or table[:, 0].max() >= MAX_LAYERS or table[:, 1].max() >= num_experts:
        raise TraceError(
            str(path), "rows", f"a layer or expert is out of range ({table.max(axis=0).tolist()})", "check the number of experts"
        )
    return table


def _batches(table: npt.NDArray[np.int64], k: int, where: str) -> list[npt.NDArray[np.int64]]:
    """`[tokens, layers, k]` of each batch: layers ascend within it, and start again with the next."""
    layer = table[:, 0]
    edges = np.flatnonzero(np.diff(layer, prepend=-1, append=-1))
    runs = list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)) if len(edges) > 1 else [(0, len(table))]
    batches: list[list[tuple[int, npt.NDArray[np.int64]]]] = []
    last = MAX_LAYERS
    for begin, end in runs:
        number = int(layer[begin])
        if (end - begin) % k:
            raise TraceError(where, f"layer {number}", f"{end - begin} rows from row {begin} are not whole tokens of {k}", "check k")
        if number <= last:
            batches.append([])
        batches[-1].append((number, table[begin:end, 1].reshape(-1, k)))
        last = number
    arrays = []
    for batch in batches:
        tokens = max(len(ids) for _, ids in batch)
        whole = np.full((tokens, max(number for number, _ in batch) + 1, k), -1, dtype=np.int64)
        for number, ids in batch:
            whole[tokens - len(ids) :, number] = ids
        arrays.append(whole)
    return arrays
