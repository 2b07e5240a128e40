"""From the tokens that an engine recorded to one trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.engines.imported import Hints, Imported
from grace_moe.engines.layers import layers_with_experts
from grace_moe.errors import TraceError
from grace_moe.trace import DECODE, PREFILL, RoutingTrace

Ids = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, kw_only=True)
class RoutedRequest:
    """The routing of one request, token by token."""

    topk_ids: Ids
    """`[tokens, decoder layers, k]` logical ids, -1 = none."""
    prompt_tokens: int | None = None
    """Leading tokens that are prefill; None = not known."""


def trace_of_requests(requests: Sequence[RoutedRequest], hints: Hints, *, num_experts: int, source: str) -> Imported:
    """One trace of several requests, over the layers that have experts.

    Layers without experts are those that `hints.layer_ids` leaves out; without it, those where no token has a choice or every token
    names expert 0 alone, which is how engines fill them.

    Raises:
        TraceError: no tokens, or requests of different models.
        UsageError: `hints.layer_ids` names a layer that the dump doesn't have.
    """
    if not requests or not sum(len(r.topk_ids) for r in requests):
        raise TraceError(source, "tokens", "none", "record some requests")
    shapes = {r.topk_ids.shape[1:] for r in requests}
    if len(shapes) > 1:
        raise TraceError(source, "layers, k", f"requests differ: {sorted(shapes)[:3]}", "import one model at a time")
    for request in requests:
        if request.topk_ids.size and (request.topk_ids.min() < -1 or request.topk_ids.max() >= num_experts):
            bad = int(request.topk_ids.max()) if request.topk_ids.max() >= num_experts else int(request.topk_ids.min())
            raise TraceError(source, "expert ids", f"{bad} is not in 0..{num_experts - 1}", "check the number of experts")
    ids = np.concatenate([r.topk_ids for r in requests]).astype(np.int32)
    used = np.flatnonzero((ids >= 0).any(axis=(0, 1)))
    ids = ids[:, :, : int(used.max(initial=0)) + 1]  # engines pad k
    layers, notes = layers_with_experts(ids, hints, source)
    lengths = [len(r.topk_ids) for r in requests]
    phase = None
    if all(r.prompt_tokens is not None for r in requests):
        phase = np.concatenate(
            [np.where(np.arange(n) < (r.prompt_tokens or 0), PREFILL, DECODE) for n, r in zip(lengths, requests, strict=True)]
        ).astype(np.uint8)
    trace = RoutingTrace(
        topk_ids=np.ascontiguousarray(ids[:, list(layers)]).astype(np.int16),
        num_experts=num_experts,
        layer_ids=layers,
        model=hints.model,
        dataset=hints.dataset,
        request_ids=np.repeat(np.arange(len(requests), dtype=np.int32), lengths),
        phase=phase,
        source=source,
    )
    return Imported(trace=trace, notes=notes)
