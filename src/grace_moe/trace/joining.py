"""One trace of several of the same model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
    phases = [trace.phase for trace in traces]
    weights = [trace.topk_weights for trace in traces]
    return RoutingTrace(
        topk_ids=np.concatenate(ids).astype(first.topk_ids.dtype),
        num_experts=first.num_experts,
        layer_ids=first.layer_ids,
        model=first.model,
        dataset=" + ".join(dict.fromkeys(trace.dataset for trace in traces)),
        request_ids=np.concatenate(requests).astype(np.int32),
        phase=np.concatenate([p for p in phases if p is not None]) if all(p is not None for p in phases) else None,
        topk_weights=np.concatenate([w for w in weights if w is not None]) if all(w is not None for w in weights) else None,
        counts_only=any(trace.counts_only for trace in traces),
        surrogate=any(trace.surrogate for trace in traces),
        source=" + ".join(dict.fromkeys(trace.source for trace in traces)),
    )


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
