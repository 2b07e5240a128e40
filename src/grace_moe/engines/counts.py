"""From counts that an engine kept to a trace that knows loads alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from grace_moe.engines.imported import Hints, Imported
from grace_moe.engines.layers import check_layers
from grace_moe.errors import TraceError
from grace_moe.trace import RoutingTrace

COUNT_ROWS = 65_536
"""Rows of a trace made of counts: enough to keep loads to a part in thousands, few enough to plan on at once."""
COUNTS_NOTE = "counts only: they tell how often each expert fires, not which fire together, so plans on them are by load alone"


def trace_of_counts(counts: npt.NDArray[np.int64], layer_ids: Sequence[int], hints: Hints, source: str) -> Imported:
    """A trace of `[layers, experts]` counts: each row one expert a layer, as often as it was counted, so that it knows loads alone.

    Counts over `COUNT_ROWS` a layer are scaled down, each layer by itself, to the nearest.

    Raises:
        TraceError: negative counts, or none at all.
    """
    if counts.min(initial=0) < 0 or not counts.sum():
        raise TraceError(source, "counts", "none, or some negative", "record some requests")
    rows = min(COUNT_ROWS, int(counts.sum(axis=1).max()))
    ids = np.full((rows, len(counts), 1), -1, dtype=np.int32)
    for layer, row in enumerate(counts):
        total = int(row.sum())
        if not total:
            continue
        ends = np.round(np.cumsum(row) * (min(rows, total) / total)).astype(np.int64)
        ids[: ends[-1], layer, 0] = np.repeat(np.arange(len(row)), np.diff(ends, prepend=0))
    trace = RoutingTrace(
        topk_ids=ids.astype(np.int16),
        num_experts=counts.shape[1],
        layer_ids=tuple(int(i) for i in layer_ids),
        model=hints.model,
        dataset=hints.dataset,
        counts_only=True,
        source=source,
    )
    return Imported(trace=trace, notes=(COUNTS_NOTE,))


def layers_of_counts(counts: npt.NDArray[np.int64], hints: Hints, source: str) -> Imported:
    """The trace of `[decoder layers, experts]` counts; layers without any, or that `hints.layer_ids` leaves out, have no experts."""
    layers = hints.layer_ids or tuple(int(i) for i in np.flatnonzero(counts.sum(axis=1)))
    check_layers(layers, len(counts), source)
    return trace_of_counts(counts[list(layers)], layers, hints, source)
