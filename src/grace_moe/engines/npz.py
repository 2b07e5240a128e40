"""Plain NumPy archives: for whoever records by other means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from grace_moe.engines.counts import layers_of_counts
from grace_moe.engines.dumps import read_npz
from grace_moe.engines.imported import Hints, Imported
from grace_moe.errors import TraceError, UsageError
from grace_moe.trace import RoutingTrace


def import_npz(paths: Sequence[Path], hints: Hints) -> Imported:
    """`topk_ids` `[tokens, layers, k]` (or `expert_load` `[layers, experts]`), and optionally `request_ids` `[tokens]`, `phase` `[tokens]`,
    `layer_ids` `[layers]` and `num_experts`.

    Raises:
        TraceError: not such a file.
        UsageError: the number of experts is unknown, or more than one file.
    """
    if len(paths) != 1:
        raise UsageError("one .npz at a time; join the arrays first")
    source, arrays = str(paths[0]), read_npz(paths[0])
    if "expert_load" in arrays and "topk_ids" not in arrays:
        load = arrays["expert_load"]
        if load.ndim != 2 or not 1 <= load.shape[1] <= 32_767:
            raise TraceError(source, "expert_load", f"shape {load.shape} is not [layers, experts]", "sum it over what else it has")
        return layers_of_counts(load.astype(np.int64), hints, source)
    if "topk_ids" not in arrays or arrays["topk_ids"].ndim != 3:
        raise TraceError(source, "topk_ids", "missing, or not [tokens, layers, k]", "name the array of expert ids topk_ids")
    ids = arrays["topk_ids"]
    number = arrays.get("num_experts")
    experts = (
        int(number.ravel()[0]) if number is not None and number.size == 1 else hints.need("num_experts", "num_experts is not in the file")
    )
    layer_ids = hints.layer_ids or tuple(int(i) for i in arrays.get("layer_ids", np.arange(ids.shape[1])).ravel())
    if ids.size and (int(ids.min()) < -1 or int(ids.max()) >= min(experts, 32_767)):
        raise TraceError(source, "topk_ids", f"ids {ids.min()}..{ids.max()} are not in -1..{experts - 1}", "check num_experts")
    requests, phase = arrays.get("request_ids"), arrays.get("phase")
    return Imported(
        trace=RoutingTrace(
            topk_ids=ids.astype(np.int16),
            num_experts=experts,
            layer_ids=layer_ids,
            model=hints.model,
            dataset=hints.dataset,
            request_ids=None if requests is None else requests.astype(np.int32),
            phase=None if phase is None else phase.astype(np.uint8),
            source=source,
        )
    )
