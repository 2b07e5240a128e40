"""Plain NumPy archives: for whoever records by other means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.engines.recordings.counts import profile_of_counts
from grace_moe.engines.recordings.dumps import read_npz
from grace_moe.engines.recordings.imported import Hints, Imported
from grace_moe.engines.recordings.tokens import Tokens, trace_of_tokens
from grace_moe.errors import TraceError, UsageError
from grace_moe.files import MAX_EXPERTS, MAX_LAYER_ID, narrow

Ids = npt.NDArray[np.integer[Any]]


def import_npz(paths: Sequence[Path], hints: Hints) -> Imported:
    """`topk_ids` `[tokens, layers, k]` (or `expert_load` `[layers, experts]`), and optionally `request_ids` `[tokens]`, `phase` `[tokens]`,
    `layer_ids` `[layers]` and `num_experts`.

    Raises:
        TraceError: not such a file.
        UsageError: the number of experts is unknown, or more than one file.
    """
    if len(paths) != 1:
        raise UsageError("one .npz at a time; join the arrays first")
    source, arrays = str(paths[0]), read_npz(paths[0], "iuf")
    layer_ids = None if "layer_ids" not in arrays else _layer_ids(_whole(arrays, "layer_ids", source), source)
    if "expert_load" in arrays and "topk_ids" not in arrays:
        return profile_of_counts(arrays["expert_load"], hints, source, field="expert_load", layer_ids=layer_ids)
    if "topk_ids" not in arrays or arrays["topk_ids"].ndim != 3:
        raise TraceError(source, "topk_ids", "missing, or not [tokens, layers, k]", "name the array of expert ids topk_ids")
    ids, experts = _whole(arrays, "topk_ids", source), _num_experts(arrays, hints, source)
    if ids.size and (int(ids.min()) < -1 or int(ids.max()) >= experts):
        raise TraceError(source, "topk_ids", f"ids {ids.min()}..{ids.max()} are not in -1..{experts - 1}", "check num_experts")
    requests, phase = (_column(arrays, name, len(ids), source) for name in ("request_ids", "phase"))
    tokens = Tokens(
        topk_ids=ids.astype(np.int16),
        num_experts=experts,
        source=source,
        requests=requests,
        phase=None if phase is None else narrow(phase, np.uint8, kind=TraceError, source=source, field="phase"),
        layer_ids=layer_ids,
    )
    return trace_of_tokens(tokens, hints)


def _whole(arrays: dict[str, Any], name: str, source: str) -> Ids:
    array: Ids = arrays[name]
    if array.dtype.kind not in "iu":
        raise TraceError(source, name, f"{array.dtype} are not whole numbers", "write them as integers")
    return array


def _num_experts(arrays: dict[str, Any], hints: Hints, source: str) -> int:
    """Experts of a layer, as the file says, else as the hints do."""
    if "num_experts" not in arrays or arrays["num_experts"].size != 1:
        return hints.need("num_experts", "num_experts is not in the file")
    number = int(_whole(arrays, "num_experts", source).ravel()[0])
    if not 1 <= number <= MAX_EXPERTS:
        raise TraceError(source, "num_experts", f"{number} is not in 1..{MAX_EXPERTS}", "give the experts of a layer")
    return number


def _layer_ids(array: Ids, source: str) -> tuple[int, ...]:
    numbers = tuple(int(number) for number in array.ravel())
    if any(not 0 <= number <= MAX_LAYER_ID for number in numbers):
        raise TraceError(
            source, "layer_ids", f"{list(numbers)[:9]} are not in 0..{MAX_LAYER_ID}", "give the model's own numbers of its layers"
        )
    return numbers


def _column(arrays: dict[str, Any], name: str, tokens: int, source: str) -> npt.NDArray[np.int64] | None:
    """`[tokens]` numbers, where they are there. Raises TraceError: of another shape, or no whole numbers."""
    if name not in arrays:
        return None
    array = _whole(arrays, name, source)
    if array.shape != (tokens,):
        raise TraceError(source, name, f"shape {array.shape} for {tokens} tokens", "give one for each token")
    column: npt.NDArray[np.int64] = narrow(array, np.int64, kind=TraceError, source=source, field=name)
    return column
