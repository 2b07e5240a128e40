"""CSV of loads: a row for each layer and expert, such as each rank writes of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from grace_moe.engines.recordings.csv_rows import read_rows
from grace_moe.errors import TraceError
from grace_moe.files import MAX_EXPERTS, MAX_LAYER_ID, check_budget

COLUMNS = {
    "layer": ("layer_id", "layer", "layer_idx", "layer_index"),
    "expert": ("expert_id", "expert", "expert_idx", "logical_expert_id"),
    "count": ("count", "counts", "tokens", "num_tokens", "load", "token_count", "expert_load"),
}
"""What columns may be called; others are not read."""
_MEND = "give columns layer_id,expert_id,count"


def read_load_csv(path: Path, num_experts: int | None) -> tuple[npt.NDArray[np.float64] | npt.NDArray[np.int64], tuple[int, ...]]:
    """`[layers, experts]` counts, and the layers' numbers. Rows of the same layer and expert add up.

    Args:
        num_experts: experts of a layer; None = up to the highest that is named.

    Raises:
        TraceError: not such a file, or out of range.
    """
    source = str(path)
    rows = read_rows(path)
    table = rows.table
    layer, expert, count = _columns(rows.header, table.shape[1], source)
    places = table[:, [layer, expert]]
    if not (places == np.floor(places)).all() or places.min() < 0 or places[:, 0].max() > MAX_LAYER_ID or places[:, 1].max() >= MAX_EXPERTS:
        raise TraceError(source, "rows", "a layer or an expert is no number, or out of range", _MEND)
    layers, row = np.unique(places[:, 0].astype(np.int64), return_inverse=True)
    experts = int(places[:, 1].max()) + 1 if num_experts is None else num_experts
    if places[:, 1].max() >= experts:
        raise TraceError(source, "rows", f"expert {int(places[:, 1].max())} is not in 0..{experts - 1}", "check the number of experts")
    check_budget(8 * len(layers) * experts, rows.file_bytes, kind=TraceError, source=source, field="layers x experts")
    counts = np.zeros((len(layers), experts))
    np.add.at(counts, (row, places[:, 1].astype(np.int64)), table[:, count])
    whole = bool((counts == np.floor(counts)).all()) and counts.max(initial=0) < 2**53
    return counts.astype(np.int64) if whole else counts, tuple(layers.tolist())


def _columns(header: tuple[str, ...] | None, width: int, source: str) -> tuple[int, int, int]:
    """Where layer, expert and count are."""
    if header is None:
        if width != 3:
            raise TraceError(source, "header", f"missing, and there are {width} columns", _MEND)
        return 0, 1, 2
    found = []
    for what, names in COLUMNS.items():
        at = next((header.index(name) for name in names if name in header), None)
        if at is None:
            raise TraceError(source, "header", f"{','.join(header)[:80]} has no {what}", _MEND)
        found.append(at)
    return found[0], found[1], found[2]
