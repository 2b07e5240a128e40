"""Which layers of a dump have experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.engines.imported import Hints
from grace_moe.errors import TraceError, UsageError

Ids = npt.NDArray[np.integer[Any]]


def layers_with_experts(ids: Ids, hints: Hints, source: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The layers of `[tokens, decoder layers, k]` choices that have experts, and what was assumed.

    Raises:
        TraceError: no layer has a choice.
        UsageError: `hints.layer_ids` names a layer that the dump doesn't have.
    """
    if hints.layer_ids is not None:
        check_layers(hints.layer_ids, ids.shape[1], source)
        return hints.layer_ids, ()
    empty = (ids < 0).all(axis=(0, 2)) | (ids == 0).all(axis=(0, 2))
    layers = tuple(int(i) for i in np.flatnonzero(~empty))
    if not layers:
        raise TraceError(source, "layers", "none has a token that chose an expert", "record a Mixture-of-Experts model")
    note = f"layers {', '.join(map(str, np.flatnonzero(empty)))} never chose: taken as dense (--layers says otherwise)"
    return layers, (note,) if empty.any() else ()


def check_layers(layers: Sequence[int], rows: int, source: str) -> None:
    """Raise UsageError unless all layers that were given are among the dump's rows."""
    if not layers or max(layers) >= rows or min(layers) < 0:
        raise UsageError(
            f"{source}: it has decoder layers 0..{rows - 1}, and the layers with experts are given as {list(layers)[:9]}; check them"
        )
