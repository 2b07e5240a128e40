"""llama.cpp: the CSV of its `moe-trace` example, a row `layer,expert` for each choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from grace_moe.engines.recordings.counts import profile_of_counts
from grace_moe.engines.recordings.csv_rows import read_rows
from grace_moe.engines.recordings.imported import Hints, Imported
from grace_moe.engines.recordings.signs import WRONG_STRIDE, is_partitioned
from grace_moe.engines.recordings.tokens import Tokens, trace_of_tokens
from grace_moe.errors import TraceError
from grace_moe.files import MAX_LAYERS, check_budget

_MEND = "give the CSV of llama.cpp's moe-trace"


@dataclass(frozen=True, kw_only=True)
class Run:
    """Rows of one layer in one batch."""

    layer: int
    batch: int
    experts: npt.NDArray[np.int16]
    where: str


def import_csv(paths: Sequence[Path], hints: Hints) -> Imported:
    """Read `moe-trace` CSV files, each one or several joined. With k known (`hints.top_k`), the rows of a layer in a batch are its
    tokens, k rows each; else counts.

    llama.cpp computes its last layer for the last tokens of a batch alone: a layer with fewer tokens than the batch has has the last.

    Raises:
        TraceError: not such a file, or rows that don't make whole tokens.
        UsageError: the number of experts is unknown.
    """
    experts = hints.need("num_experts", "the CSV doesn't say how many experts there are")
    runs: list[Run] = []
    size = 0
    for path in paths:
        more, file_bytes = _runs(path, experts, runs[-1].batch + 1 if runs else 0)
        runs, size = runs + more, size + file_bytes
    layers = _layers(runs, hints)
    source = str(paths[0])
    if hints.top_k is None:
        check_budget(16 * len(layers) * experts, size, kind=TraceError, source=source, field="layers x experts")
        counts, column = np.zeros((len(layers), experts), dtype=np.int64), {layer: index for index, layer in enumerate(layers)}
        for run in runs:
            counts[column[run.layer]] += np.bincount(run.experts, minlength=experts)
        imported = profile_of_counts(counts, hints, source, field="rows", layer_ids=layers)
        odd = (WRONG_STRIDE.format(rows=f"{experts} rows", experts=experts),) if is_partitioned([r.experts for r in runs], experts) else ()
        return Imported(trace=imported.trace, notes=(*imported.notes, *odd, "give --top-k, or --model, to import tokens from this CSV"))
    imported = trace_of_tokens(_tokens(runs, layers, hints.top_k, experts, size), hints)
    return Imported(trace=imported.trace, notes=(*imported.notes, "the CSV names no requests: each batch counts as one"))


def _runs(path: Path, num_experts: int, batch: int) -> tuple[list[Run], int]:
    """The runs of a file, its first batch numbered so, and the file's size: layers ascend within a batch, and start again with the next
    or after a header."""
    rows = read_rows(path)
    if rows.table.shape[1] != 2 or (rows.header is not None and rows.header != ("layer", "expert")):
        raise TraceError(str(path), "rows", "not two columns layer,expert", f"{_MEND}; counts are for --engine loads")
    if (rows.table != np.floor(rows.table)).any():
        raise TraceError(str(path), "rows", "not whole numbers", _MEND)
    if rows.table.min() < 0 or rows.table[:, 0].max() >= MAX_LAYERS or rows.table[:, 1].max() >= num_experts:
        most = rows.table.max(axis=0).astype(int).tolist()
        raise TraceError(str(path), "rows", f"a layer or expert is out of range ({most})", "check the number of experts")
    layer, expert = rows.table[:, 0].astype(np.int64), rows.table[:, 1].astype(np.int16)
    edges = np.union1d(np.flatnonzero(np.diff(layer, prepend=-1)), [*rows.starts, len(layer)]).astype(int).tolist()
    runs: list[Run] = []
    for begin, end in pairwise(edges):
        if runs and (layer[begin] <= runs[-1].layer or begin in rows.starts):
            batch += 1
        runs.append(Run(layer=int(layer[begin]), batch=batch, experts=expert[begin:end], where=f"{path}: row {begin}"))
    return runs, rows.file_bytes


def _layers(runs: Sequence[Run], hints: Hints) -> tuple[int, ...]:
    """All layers with a row, and those below the last that the model has experts in."""
    found = {run.layer for run in runs}
    return tuple(sorted(found | {layer for layer in hints.layer_ids or () if layer < max(found)}))


def _tokens(runs: Sequence[Run], layers: tuple[int, ...], k: int, experts: int, size: int) -> Tokens:
    """The tokens of all batches."""
    of_batch = np.zeros(runs[-1].batch + 1, dtype=np.int64)
    for run in runs:
        if len(run.experts) % k:
            raise TraceError(run.where, f"layer {run.layer}", f"{len(run.experts)} rows are not whole tokens of {k}", "check k")
        of_batch[run.batch] = max(of_batch[run.batch], len(run.experts) // k)
    ends, column = np.cumsum(of_batch), {layer: index for index, layer in enumerate(layers)}
    source = runs[0].where.rpartition(": row")[0]
    check_budget(8 * int(ends[-1]) * len(layers) * k, size, kind=TraceError, source=source, field="tokens x layers")
    ids = np.full((int(ends[-1]), len(layers), k), -1, dtype=np.int16)
    for run in runs:
        end, number = int(ends[run.batch]), len(run.experts) // k
        ids[end - number : end, column[run.layer]] = run.experts.reshape(-1, k)
    return Tokens(
        topk_ids=ids, num_experts=experts, source=source, requests=np.repeat(np.arange(len(of_batch)), of_batch), layer_ids=layers
    )
