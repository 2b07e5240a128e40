"""Affinity of experts: how many tokens activate both (docs/method.md#profile: A)."""

from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.trace import activations


def affinity_matrix(topk_ids: npt.NDArray[np.integer[Any]], num_experts: int) -> npt.NDArray[np.int64]:
    """`[experts, experts]` tokens that activate both i and j; symmetric, zero diagonal.

    Args:
        topk_ids: `[tokens, k]` one layer's choices; -1 counts for nothing.
    """
    chosen = activations(topk_ids, num_experts)
    together = np.asarray((chosen.T @ chosen).toarray(), dtype=np.int64)
    np.fill_diagonal(together, 0)
    return together


def layer_loads(topk_ids: npt.NDArray[np.integer[Any]], num_experts: int) -> npt.NDArray[np.int64]:
    """`[experts]` tokens that activate each expert (docs/method.md#profile: w); one layer of `trace.expert_loads`."""
    return np.bincount(topk_ids[topk_ids >= 0].ravel(), minlength=num_experts).astype(np.int64)
