"""What is independent in a trace: its requests; where none were recorded, runs of streams of tokens.

Neighbouring tokens choose alike. Taken for independent, they make loads look steadier than they are: a plan then keeps on one
node what one topic needs, and another mix of topics overloads it. Sequences that were recorded side by side take turns: with p of
them, tokens t, t + p, t + 2 p, ... are one stream. p is the distance at which tokens agree most.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.planning.constants import FEWEST_RUNS, MOST_STREAMS, RUN_TOKENS, STREAM_AGREEMENT, STREAM_LAYERS, STREAM_TOKENS


def independent_units(topk_ids: npt.NDArray[np.integer[Any]], request: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """`[T]` 0, 1, ...: the unit of each token; its request unless every token is one of its own.

    Args:
        topk_ids: `[T, layers, k]`, -1 = none; tokens in the order of the trace.
        request: `[T]` 0, 1, ...
    """
    tokens = len(topk_ids)
    if not tokens or int(request.max()) + 1 < tokens:
        return request
    streams = stream_distance(topk_ids)
    run = max(1, min(RUN_TOKENS, tokens // FEWEST_RUNS))
    place = np.arange(tokens)
    units: npt.NDArray[np.int64] = np.unique(place // streams // run * streams + place % streams, return_inverse=True)[1]
    return units


def stream_distance(topk_ids: npt.NDArray[np.integer[Any]]) -> int:
    """Shortest distance p <= `MOST_STREAMS` at which tokens share about as many experts as at any, over at most `STREAM_LAYERS` layers.

    Args:
        topk_ids: `[T, layers, k]`, -1 = none.
    """
    sample = topk_ids[:STREAM_TOKENS, :: -(-topk_ids.shape[1] // STREAM_LAYERS)]
    shared = [0.0]
    for distance in range(1, min(MOST_STREAMS, len(sample) // 4) + 1):
        alike = (sample[distance:, :, :, None] == sample[:-distance, :, None, :]) & (sample[distance:, :, :, None] >= 0)
        shared.append(float(alike.sum()) / max(1, len(sample) - distance))
    return next((d for d, mean in enumerate(shared) if d and mean >= STREAM_AGREEMENT * max(shared)), 1)
