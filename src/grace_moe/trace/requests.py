"""Which request a token belongs to, by order of appearance."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from grace_moe.trace.model import RoutingTrace


def order_of_requests(trace: RoutingTrace) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """`[T]` number of each token's request, by first appearance, and `[T]` the token's place in it."""
    _, first, inverse = np.unique(trace.requests, return_index=True, return_inverse=True)
    number = np.empty(len(first), dtype=np.int64)
    number[np.argsort(first, kind="stable")] = np.arange(len(first))
    request = number[inverse]
    by_request = np.argsort(request, kind="stable")
    sizes = np.bincount(request, minlength=len(first))
    position = np.empty(len(request), dtype=np.int64)
    position[by_request] = np.arange(len(request)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return request, position
