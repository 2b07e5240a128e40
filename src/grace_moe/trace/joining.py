"""One trace of several of the same model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.errors import TraceError
from grace_moe.trace.model import RoutingTrace


def concatenate(traces: Sequence[RoutingTrace]) -> RoutingTrace:
    """One trace of several of the same model; requests stay apart.

    Raises:
        TraceError: different models, experts, layers or k.
    """
    first = traces[0]
    ids, requests, offset = [], [], 0
    for trace in traces:
        for field in ("num_experts", "layer_ids", "top_k", "model"):
            ours, theirs = getattr(first, field), getattr(trace, field)
            if ours != theirs and not (field == "model" and "" in (ours, theirs)):
                raise TraceError(trace.source, field, f"{theirs!r}, but {first.source} has {ours!r}", "join traces of one model")
        ids.append(trace.topk_ids.astype(np.int32))
        own = np.unique(trace.requests, return_inverse=True)[1]
        requests.append(own + offset)
        offset += int(own.max(initial=-1)) + 1
    phases, weights, tokens = ([getattr(trace, name) for trace in traces] for name in ("phase", "topk_weights", "token_ids"))
    return RoutingTrace(
        topk_ids=np.concatenate(ids).astype(first.topk_ids.dtype),
        num_experts=first.num_experts,
        layer_ids=first.layer_ids,
        model=first.model,
        dataset=" + ".join(dict.fromkeys(trace.dataset for trace in traces)),
        request_ids=np.concatenate(requests).astype(np.int32),
        phase=_joined(phases),
        topk_weights=_joined(weights),
        token_ids=_joined(tokens),
        surrogate=any(trace.surrogate for trace in traces),
        source=" + ".join(dict.fromkeys(trace.source for trace in traces)),
    )


def _joined(columns: Sequence[npt.NDArray[Any] | None]) -> npt.NDArray[Any] | None:
    """The column of all traces, None where one of them has none."""
    known = [column for column in columns if column is not None]
    return np.concatenate(known) if len(known) == len(columns) else None


def mixed(traces: Sequence[RoutingTrace]) -> RoutingTrace:
    """One trace in which several of the same model weigh the same: each is as long as the longest.

    Tokens of a shorter trace are repeated evenly and stay in their requests. Its loads count more, but are no more certain:
    requests are the independent units. A single trace is given back as it is.

    Raises:
        TraceError: different models, experts, layers or k.
    """
    if len(traces) == 1:
        return traces[0]
    longest = max(trace.num_tokens for trace in traces)
    full = [t if t.num_tokens in (0, longest) else t.select(np.arange(longest) * t.num_tokens // longest) for t in traces]
    return concatenate(full)
