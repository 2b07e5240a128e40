"""Whether loads have changed, step by step: a test with a stated rate of false alarms.

What comes in at one time is of the same requests, so that single steps are not independent. Blocks of as many steps as are called recent
nearly are: how far each differs from the others tells how far the recent ones may differ without a change. The logarithms of these
distances are taken for normal, and the recent one is compared by Student's t: with few blocks, only what is far off is called a change.
The block before the recent one is left out: some of a change may be in it already, and would pass for noise.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr

from grace_moe.trace.change import Change

FEWEST_BLOCKS = 6
"""Blocks of steps that tell how far they differ: with fewer, no change is told. Not tuned."""

INDEPENDENT = 2 / 3
"""Of the blocks, as many are taken for independent: those that follow each other share requests. Chosen on loads of GLM-5.2, web and
mathematics, for requests of 16 steps and blocks of 10."""
LEAST_SPREAD = 0.05
"""Standard deviation of the logarithms of distances, at least. Not tuned: few blocks may by chance be all alike."""

Floats = npt.NDArray[np.float64]
Loads = npt.NDArray[np.integer[Any]]


def change_of_loads(before: Loads, kept: Loads, recent_steps: int, noise: Floats | None = None) -> Change:
    """Compare the last steps with those that were last planned for.

    Args:
        before: `[S, L, E]` loads of the steps that were last planned for, or of one recording.
        kept: `[S, L, E]` loads of all steps that are remembered, the recent ones last.
        recent_steps: that are called recent.
        noise: `[blocks]` how far steps differ without a change (`noise_of`); None = as those of `kept` do.
    """
    recent = kept[-recent_steps:]
    noise = noise_of(kept, recent_steps) if noise is None else noise
    pairs_per_step = recent.sum() / recent_steps
    sizes = (len(before), len(recent))
    if noise is None or not pairs_per_step:
        return Change(distance=0.0, by_layer=(), expected=0.0, chance=1.0, compared=sizes, unit="steps")
    count = len(noise)
    old = before.sum(axis=0, dtype=np.float64)
    steps_before = old.sum() / pairs_per_step  # a recording is worth as many steps as have its pairs
    by_layer = _distances(recent.sum(axis=0, dtype=np.float64), old)
    logs = np.log(np.maximum(noise * (1 + recent_steps / steps_before), 1e-300))
    distance = float(by_layer.mean())
    spread = max(float(logs.std(ddof=1)), LEAST_SPREAD) * math.sqrt(1 + 1 / count)
    far = (math.log(max(distance, 1e-300)) - float(logs.mean())) / spread
    return Change(
        distance=distance,
        by_layer=tuple(by_layer.tolist()),
        expected=float(np.exp(logs.mean())),
        chance=float(stdtr(INDEPENDENT * (count - 1), -far)),
        compared=sizes,
        unit="steps",
    )


def noise_of(kept: Loads, recent_steps: int) -> Floats | None:
    """`[blocks]` distance of each block of steps from all traffic, mean over layers, where that does not change; None = too few steps.

    Args:
        kept: `[S, L, E]` loads; the last two blocks of recent steps are left out, as they may hold a change.
    """
    calm = kept[: -2 * recent_steps]
    count = len(calm) // recent_steps
    if count < FEWEST_BLOCKS:
        return None
    blocks = calm[len(calm) - count * recent_steps :].reshape(count, recent_steps, *calm.shape[1:]).sum(axis=1, dtype=np.float64)
    near = blocks.copy()  # a block and its neighbours, which are of the same requests in part
    near[1:] += blocks[:-1]
    near[:-1] += blocks[1:]
    among: Floats = _distances(blocks, blocks.sum(axis=0) - near).mean(axis=1)
    return among / (1 + 1 / (count - 3))


def _distances(some: Floats, others: Floats) -> Floats:
    """`[..., L]` squared differences of the experts' shares of the load, summed over experts."""
    shares = [loads / np.maximum(loads.sum(axis=-1, keepdims=True), 1) for loads in (some, others)]
    distances: Floats = ((shares[0] - shares[1]) ** 2).sum(axis=-1)
    return distances
