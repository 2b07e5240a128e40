"""Replica choice for a whole batch at once: policies that first count what the batch's tokens ask for.

TAR, WRR and the joint choice decide token by token, from tables that every rank holds. These see the routing of all ranks'
tokens first (at run time: a gather of counts each layer). They are evaluated, not run, here.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from grace_moe.errors import UsageError
from grace_moe.placement import LayerPlacement
from grace_moe.topology import Topology

Ints = npt.NDArray[np.int64]


class BatchPolicy(Protocol):
    """A way to give a batch's (token, expert) pairs their replicas."""

    def __call__(self, layer: LayerPlacement, topology: Topology, topk_ids: Ints, sources: Ints) -> Ints:
        """`[tokens, k]` device of each pair, -1 where no expert is chosen.

        Args:
            topk_ids: `[tokens, k]` logical ids of one batch, -1 = none.
            sources: `[tokens]` source device of each token.
        """
        ...


_PLACES = {
    "lplb": "grace_moe.choice.lplb:lplb",
    "metro": "grace_moe.choice.metro:metro",
}
BATCH_POLICIES = tuple(_PLACES)
"""Names that `batch_policy` knows."""


def batch_policy(name: str) -> BatchPolicy:
    """The policy of this name. Raises UsageError where there is none."""
    if name not in _PLACES:
        raise UsageError(f"policy {name!r} is unknown; use one of {', '.join(BATCH_POLICIES)}")
    module, _, function = _PLACES[name].partition(":")
    return cast("BatchPolicy", getattr(importlib.import_module(module), function))


def batch_loads(topk_ids: npt.NDArray[np.integer[Any]], num_experts: int) -> Ints:
    """`[experts]` tokens of the batch that chose each expert."""
    return np.bincount(topk_ids[topk_ids >= 0], minlength=num_experts)


def deal(topk_ids: Ints, experts: Ints, devices: Ints, counts: Ints) -> Ints:
    """`[tokens, k]` device of each pair: an expert's tokens, in order, fill its first replica's count, then its next one's.

    Args:
        topk_ids: `[tokens, k]`, -1 = none.
        experts, devices: `[replicas]` of each replica, experts ascending.
        counts: `[replicas]` tokens it takes; an expert's replicas take all of its tokens.
    """
    chosen = np.full(topk_ids.shape, -1, dtype=np.int64)
    pairs = np.flatnonzero(topk_ids >= 0)
    by_expert = pairs[np.argsort(topk_ids.ravel()[pairs], kind="stable")]
    assert (np.diff(experts) >= 0).all(), "replicas are not in the order of experts"
    chosen.ravel()[by_expert] = np.repeat(devices, counts)
    return chosen
