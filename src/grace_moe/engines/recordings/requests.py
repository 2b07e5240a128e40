"""From the requests that an engine recorded, one by one, to one trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grace_moe.engines.recordings.imported import Hints, Imported
from grace_moe.engines.recordings.tokens import UNKNOWN, Ids, Tokens, trace_of_tokens
from grace_moe.errors import TraceError
from grace_moe.trace import DECODE, PREFILL


@dataclass(frozen=True, kw_only=True)
class RoutedRequest:
    """The routing of one request, token by token."""

    topk_ids: Ids
    """`[tokens, decoder layers, k]` logical ids, -1 = none."""
    prompt_tokens: int | None = None
    """Leading tokens that are prefill; None = not known."""


def trace_of_requests(requests: Sequence[RoutedRequest], hints: Hints, *, num_experts: int, source: str) -> Imported:
    """One trace of several requests, of what was recorded of them (`trace_of_tokens`).

    Raises:
        TraceError: no tokens, or requests of different models.
        UsageError: `hints.layer_ids` names a layer that the dump doesn't have.
    """
    if not requests or not sum(len(r.topk_ids) for r in requests):
        raise TraceError(source, "tokens", "none", "record some requests")
    shapes = {r.topk_ids.shape[1:] for r in requests}
    if len(shapes) > 1:
        raise TraceError(source, "layers, k", f"requests differ: {sorted(shapes)[:3]}", "import one model at a time")
    for request in requests:  # before ids of any width become int16
        if request.topk_ids.size and (request.topk_ids.min() < -1 or request.topk_ids.max() >= num_experts):
            bad = int(request.topk_ids.max()) if request.topk_ids.max() >= num_experts else int(request.topk_ids.min())
            raise TraceError(source, "expert ids", f"{bad} is not in 0..{num_experts - 1}", "check the number of experts")
    lengths = [len(r.topk_ids) for r in requests]
    phases = [_phase(r) for r in requests]
    tokens = Tokens(
        topk_ids=np.concatenate([r.topk_ids for r in requests]).astype(np.int16),
        num_experts=num_experts,
        source=source,
        requests=np.repeat(np.arange(len(requests)), lengths),
        phase=np.concatenate(phases),
    )
    return trace_of_tokens(tokens, hints)


def _phase(request: RoutedRequest) -> npt.NDArray[np.uint8]:
    tokens = len(request.topk_ids)
    if request.prompt_tokens is None:
        return np.full(tokens, UNKNOWN, dtype=np.uint8)
    return np.where(np.arange(tokens) < request.prompt_tokens, PREFILL, DECODE).astype(np.uint8)
