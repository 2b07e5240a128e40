"""From loads that an engine kept (how often each expert fired) to a profile of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.engines.recordings.imported import Hints, Imported
from grace_moe.engines.recordings.layers import choose_layers, numbers_of_rows
from grace_moe.engines.recordings.signs import even_counts
from grace_moe.errors import TraceError, UsageError
from grace_moe.files import MAX_COUNT, MAX_EXPERTS, MAX_LAYERS, bounded_counts
from grace_moe.trace import LoadProfile, whole_loads

COUNTS_NOTE = "counts only: they tell how often each expert fires, not which fire together, so plans on them are by load alone"

Counts = npt.NDArray[Any]
"""`[layers, experts]` whole numbers or floats."""


def profile_of_counts(
    counts: Counts, hints: Hints, source: str, *, field: str = "counts", layer_ids: Sequence[int] | None = None
) -> Imported:
    """A profile of `[layers, experts]` counts or mean loads, as whole numbers (`trace.whole_loads`).

    Layers without any count, or that `hints.layer_ids` leaves out, are left out.

    Args:
        field: what the counts are called in the file.
        layer_ids: the model's own numbers of the rows, where the dump has them (`numbers_of_rows`).

    Raises:
        TraceError: negative, too large or no finite counts, none at all, or more layers or experts than there may be.
        UsageError: `hints` name layers or a number of experts that the counts don't have, or tokens to skip.
    """
    if hints.skip_tokens:
        raise UsageError(f"--skip-tokens: {source} has counts, which can't be told apart by token; leave it out")
    loads = _checked(counts, source, field)
    if hints.num_experts is not None and hints.num_experts != loads.shape[1]:
        raise TraceError(source, field, f"{loads.shape[1]} counts a layer for {hints.num_experts} experts", "check the number of experts")
    numbers = numbers_of_rows(len(loads), hints, source, layer_ids)
    rows, kept, notes = choose_layers(numbers, np.asarray(loads.any(axis=1)), hints, source, own=layer_ids is not None)
    whole, scaled = whole_loads(loads[rows])
    profile = LoadProfile(loads=whole, layer_ids=kept, model=hints.model, dataset=hints.dataset, source=source)
    said = (f"loads are scaled to {whole.sum(axis=1).max():,} rows a layer; an expert that fired at all keeps one",) if scaled else ()
    return Imported(trace=profile, notes=(*notes, *said, *even_counts(loads[rows]), COUNTS_NOTE))


def _checked(counts: Counts, source: str, field: str) -> npt.NDArray[np.float64]:
    """The counts as finite numbers of 0 or more, in a shape that there may be."""
    if counts.ndim != 2 or not 1 <= counts.shape[1] <= MAX_EXPERTS or not 1 <= counts.shape[0] <= MAX_LAYERS:
        raise TraceError(source, field, f"shape {counts.shape} is not [layers, experts]", "sum it over what else it has")
    if counts.dtype.kind in "iu":
        loads = bounded_counts(counts, kind=TraceError, source=source, field=field).astype(np.float64)
    else:
        loads = counts.astype(np.float64)
        if not np.isfinite(loads).all() or loads.min() < 0 or loads.max() > MAX_COUNT:
            raise TraceError(source, field, f"not all are numbers of 0 to {MAX_COUNT}", "check what wrote it")
    if not loads.any():
        raise TraceError(source, field, "none: all counts are 0", "record some requests")
    return loads
