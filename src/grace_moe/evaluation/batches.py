"""What batches cost: how even the load of each is, and how many experts are active."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def batch_balance(devices: Ints, batches: Ints, speed: npt.NDArray[np.float64]) -> float:
    """Load of the busiest device over the mean, mean over the batches that have any; 0 where none has.

    Args:
        devices: `[tokens, k]` device of each pair of a layer, -1 = none.
        batches: `[tokens]` number of each token's batch.
        speed: `[devices]` relative speeds.
    """
    pairs = devices >= 0
    cells = (batches[:, None] * len(speed) + devices)[pairs]
    load = np.bincount(cells, minlength=(int(batches.max(initial=-1)) + 1) * len(speed)).reshape(-1, len(speed)) / speed
    load = load[load.any(axis=1)]
    return float((load.max(axis=1) / load.mean(axis=1)).mean()) if len(load) else 0.0


def active_experts(topk_ids: npt.NDArray[np.integer[Any]], devices: Ints, steps: Ints, num_devices: int) -> float:
    """Most distinct experts that any device computes in a decode batch, mean over the batches that have any; 0 where none has.

    Args:
        topk_ids, devices: `[tokens, k]` expert and device of each pair of a layer, -1 = none.
        steps: `[tokens]` decode batch of each token, -1 in prefill; some token decodes.
    """
    num_experts = int(topk_ids.max(initial=0)) + 1
    token, k = np.nonzero((topk_ids >= 0) & (steps >= 0)[:, None])
    step, device, expert = steps[token], devices[token, k], topk_ids[token, k].astype(np.int64)
    distinct = np.unique((step * num_devices + device) * num_experts + expert) // num_experts
    counts = np.bincount(distinct, minlength=(int(steps.max()) + 1) * num_devices)
    most = counts.reshape(-1, num_devices).max(axis=1)
    return float(most[most > 0].mean()) if most.any() else 0.0
