"""Batches of decode tokens, drawn from a trace."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from grace_moe.planning.constants import BATCH_TOKENS, LEAST_BATCHES

Ints = npt.NDArray[np.int64]


def sample_batches(request: Ints, batch: int, seed: int) -> Ints:
    """`[M * B]` tokens: batch by batch, one of each of B requests drawn at random; of some twice where there are fewer than B.

    Args:
        request: `[T]` 0, 1, ...: the request of each token; each has at least one.
    """
    generator = np.random.default_rng(seed)
    order = np.argsort(request, kind="stable")
    sizes = np.bincount(request)
    starts = np.cumsum(sizes) - sizes
    batches = max(LEAST_BATCHES, -(-BATCH_TOKENS // batch))
    rounds, rest = divmod(batch, len(sizes))
    everyone = np.tile(np.arange(len(sizes)), rounds)
    drawn = [np.concatenate([everyone, generator.choice(len(sizes), rest, replace=False)]) for _ in range(batches)]
    chosen = np.concatenate(drawn)
    tokens: Ints = order[starts[chosen] + (generator.random(len(chosen)) * sizes[chosen]).astype(np.int64)]
    return tokens
