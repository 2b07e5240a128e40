"""Tokens that are computed together: what a batch policy sees at once, and how even each batch's load is."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.choice import BatchPolicy
from grace_moe.errors import UsageError
from grace_moe.placement import LayerPlacement
from grace_moe.topology import Topology

PREFILL_BATCH = 1024
"""Tokens of a prefill batch unless said otherwise."""

Ints = npt.NDArray[np.int64]


def number_batches(steps: Ints | None, num_tokens: int, batch_tokens: int) -> Ints:
    """`[tokens]` number of each token's batch: prefill cut in the order of the trace, then decode by step.

    Args:
        steps: `[tokens]` decode batch of each token, -1 in prefill; None = all is one phase, cut like prefill.
        batch_tokens: tokens of a prefill batch.

    Raises:
        UsageError: no tokens a batch.
    """
    if batch_tokens < 1:
        raise UsageError(f"batch_tokens {batch_tokens} is out of range; use 1 or more")
    batches = np.full(num_tokens, -1, dtype=np.int64) if steps is None else steps.copy()
    prefill = batches < 0
    cut = np.arange(int(prefill.sum())) // batch_tokens
    batches[~prefill] += int(cut.max(initial=-1)) + 1
    batches[prefill] = cut
    return batches


def choose_by_batch(
    policy: BatchPolicy, layer: LayerPlacement, topology: Topology, topk_ids: npt.NDArray[Any], source: Ints, batches: Ints
) -> Ints:
    """`[tokens, k]` device of each pair of a layer, -1 = none.

    Args:
        topk_ids: `[tokens, k]` the layer's choices.
        source, batches: `[tokens]` source device and batch of each token.
    """
    chosen = np.empty(topk_ids.shape, dtype=np.int64)
    order = np.argsort(batches, kind="stable")
    for tokens in np.split(order, np.flatnonzero(np.diff(batches[order])) + 1):
        chosen[tokens] = policy(layer, topology, topk_ids[tokens].astype(np.int64), source[tokens])
    return chosen


def batch_balance(devices: Ints, batches: Ints, speed: npt.NDArray[np.float64]) -> float:
    """Load of the busiest device over the mean, mean over the batches that have any; 0 where none has.

    Args:
        devices: `[tokens, k]` device of each pair, -1 = none.
        batches: `[tokens]`.
        speed: `[devices]` relative speeds.
    """
    pairs = devices >= 0
    cells = (batches[:, None] * len(speed) + devices)[pairs]
    load = np.bincount(cells, minlength=(int(batches.max(initial=-1)) + 1) * len(speed)).reshape(-1, len(speed)) / speed
    load = load[load.any(axis=1)]
    return float((load.max(axis=1) / load.mean(axis=1)).mean()) if len(load) else 0.0
