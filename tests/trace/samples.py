"""Traces of a few tokens, by hand."""

import numpy as np

from grace_moe.trace import (
    RoutingTrace,
)


def trace_of(ids, *, experts=8, layer_ids=None, dtype=np.int16, **rest) -> RoutingTrace:
    """A trace of nested lists `[tokens][layers][k]`."""
    ids = np.array(ids, dtype=dtype)
    return RoutingTrace(
        topk_ids=ids, num_experts=experts, layer_ids=tuple(range(ids.shape[1])) if layer_ids is None else layer_ids, source="here", **rest
    )


HAND = [[[0, 1], [2, 3]], [[1, -1], [3, 2]], [[1, 2], [-1, -1]]]
