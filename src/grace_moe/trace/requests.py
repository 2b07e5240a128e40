"""Which request a token belongs to, by number and by order of appearance; and which phase."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.trace.model import DECODE, RoutingTrace


def request_numbers(names: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int32]:
    """`[T]` request ids as a trace holds them, of whatever whole numbers name requests: as they are where they fit 32 bits, else
    numbered in ascending order, so that different requests stay different.
    """
    limits = np.iinfo(np.int32)
    if names.size and (int(names.min()) < limits.min or int(names.max()) > limits.max):
        names = np.unique(names, return_inverse=True)[1]
    return names.astype(np.int32)


def order_of_requests(trace: RoutingTrace) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """`[T]` number of each token's request, by first appearance, and `[T]` the token's place in it."""
    return order_of_names(trace.requests)


def order_of_names(names: npt.NDArray[np.integer[Any]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The same, of `[T]` whole numbers that name each token's request."""
    _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    number = np.empty(len(first), dtype=np.int64)
    number[np.argsort(first, kind="stable")] = np.arange(len(first))
    request = number[inverse]
    by_request = np.argsort(request, kind="stable")
    sizes = np.bincount(request, minlength=len(first))
    position = np.empty(len(request), dtype=np.int64)
    position[by_request] = np.arange(len(request)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return request, position


def tokens_of(trace: RoutingTrace, phase: str | None) -> npt.NDArray[np.bool_]:
    """`[tokens]` which are of a phase; all, where the trace doesn't have both."""
    if phase is None or trace.phase is None or len(np.unique(trace.phase)) < 2:
        return np.ones(trace.num_tokens, dtype=bool)
    return np.asarray((trace.phase == DECODE) == (phase == "decode"))
