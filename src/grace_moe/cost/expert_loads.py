"""The loads that tables of expert kernels were measured under: uniform, or drawn from a power law, on the busiest rank."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from grace_moe.cost.packing import packed, replica_counts

Floats = npt.NDArray[np.float64]
DRAWS = 8
"""Of a skewed load: a table holds the time of one, and doesn't say which."""
PREFILL_BLOCK = 128
"""Rows that the tables' uniform prefill gives an expert before it gives the next one any: with few rows, few experts are active."""


def uniform_load(pairs: float, experts: int, phase: str) -> Floats:
    """`[1, experts]` pairs of each expert of a rank, under the tables' uniform load.

    Args:
        pairs: of the rank.
        experts: on the rank.
    """
    active = int(max(1, min(experts, round(pairs / PREFILL_BLOCK) if phase == "prefill" else round(pairs))))
    load = np.zeros((1, experts))
    load[0, :active] = pairs / active
    return load


def skewed_load(tokens: int, top_k: int, experts: int, ranks: int, alpha: float, slots: int | None = None) -> Floats:
    """`[DRAWS, slots of a rank]` pairs on the busiest rank, as AIConfigurator draws them.

    An expert's load is drawn from a power law of exponent `alpha` between 1 and 0.8 of the tokens (0.01 and 2, where there are
    fewer pairs than experts), and scaled so that all sum to tokens x top_k.

    Args:
        tokens: over all ranks.
        slots: None = experts stay where they are; else they are replicated into so many slots, and packed by load (EPLB).
    """
    draw = np.random.default_rng(0).random((DRAWS, experts))
    low, high = (1.0, 0.8 * tokens) if tokens * top_k > experts else (0.01, 2.0)
    power = 1.0 - alpha
    raw = ((high**power - low**power) * draw + low**power) ** (1.0 / power) if power else low * (high / low) ** draw
    loads = _whole(raw / raw.sum(axis=1, keepdims=True) * tokens * top_k)
    by_rank = loads.reshape(DRAWS, ranks, -1) if slots is None else _balanced(loads, slots, ranks)
    busiest = by_rank.sum(axis=2).argmax(axis=1)
    return np.asarray(by_rank[np.arange(DRAWS), busiest])


def _whole(loads: Floats) -> Floats:
    """Whole numbers with the same sums, by largest remainder."""
    whole = np.floor(loads)
    missing = np.rint(loads.sum(axis=1) - whole.sum(axis=1)).astype(int)
    rank = np.argsort(np.argsort(-(loads - whole), axis=1, kind="stable"), axis=1)
    return np.asarray(whole + (rank < missing[:, None]))


def _balanced(loads: Floats, slots: int, ranks: int) -> Floats:
    """`[draws, ranks, slots of a rank]` loads, replicated into slots and packed."""
    counts = replica_counts(loads, slots)
    each = np.stack([np.repeat(load / count, count) for load, count in zip(loads, counts, strict=True)])
    by_rank = np.argsort(packed(each, ranks), axis=1, kind="stable")
    return np.take_along_axis(each, by_rank, axis=1).reshape(len(loads), ranks, -1)
