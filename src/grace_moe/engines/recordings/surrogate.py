"""Drawing tokens whose experts are chosen as often, alone and in pairs, as counts say.

The counts of pairs that are not given follow from those that are, and from the loads, by iterative proportional fitting. Tokens are first
dealt so that every load is exact, and then exchange experts, which keeps loads, as long as that brings the counts of pairs nearer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

SWEEPS = 60
"""Exchanges that are tried, over the choices of all tokens: three times as many bring pairs a third nearer, in three times the time."""
FITTING_STEPS = 200

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Surrogate:
    """Tokens of one layer that were drawn, and how well they match."""

    topk_ids: npt.NDArray[np.int64]
    """`[tokens, k]`"""
    load_error: float
    """Mean over experts with a load of its relative error."""
    pair_error: float
    """Sum over the given pairs of what their counts are off by, over the sum of the counts."""
    each_pair_error: float
    """Mean over the given pairs of the relative error of their counts."""


def draw_surrogate(loads: Floats, pairs: npt.NDArray[np.int64], together: Floats, *, k: int, tokens: int, seed: int) -> Surrogate:
    """Draw tokens that choose `k` distinct experts each.

    Args:
        loads: `[experts]` how often each is chosen, of any scale.
        pairs: `[pairs, 2]` experts whose count is known, each pair once.
        together: `[pairs]` how often both are chosen, of the same scale.
    """
    share = loads * (tokens * k / loads.sum())
    counts = _whole(np.minimum(share, tokens), tokens * k, tokens)
    scale = tokens * k / loads.sum()
    target, given = _pair_targets(counts.astype(float), pairs, together * scale, k)
    rows = _dealt(counts, tokens, k, np.random.default_rng(seed))
    chosen = np.zeros((tokens, len(loads)))
    chosen[np.arange(tokens)[:, None], rows] = 1
    found = chosen.T @ chosen
    np.fill_diagonal(found, 0)
    gap = found - target
    _exchange(rows, gap, 1 / (target + 1), SWEEPS * tokens * k, seed)
    off, wanted = np.abs(gap)[given], target[given]
    fired = loads > 0
    return Surrogate(
        topk_ids=rows,
        load_error=float((np.abs(counts - share)[fired] / share[fired]).mean()),
        pair_error=float(off.sum() / max(wanted.sum(), 1e-12)),
        each_pair_error=float((off / wanted).mean()) if wanted.size else 0.0,
    )


def _whole(share: Floats, total: int, most: int) -> npt.NDArray[np.int64]:
    """Whole numbers of at most `most` that sum to `total`, in the ratio of the shares to the nearest."""
    counts = np.floor(share).astype(np.int64)
    while (left := total - int(counts.sum())) > 0:
        room = np.flatnonzero(counts < most)
        counts[room[np.argsort(counts[room] - share[room], kind="stable")[:left]]] += 1
    return counts


def _pair_targets(loads: Floats, pairs: npt.NDArray[np.int64], together: Floats, k: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """`[experts, experts]` counts of all pairs, and which of them are given: each expert has its (k - 1) companions a token."""
    target = np.zeros((len(loads), len(loads)))
    first, second = pairs.T if len(pairs) else (np.zeros(0, int), np.zeros(0, int))
    most = np.minimum(loads[first], loads[second])
    target[first, second] = target[second, first] = np.minimum(together, most)
    given = target > 0
    left = np.maximum((k - 1) * loads - target.sum(axis=1), 1e-9)
    rest = np.outer(loads, loads)
    rest[given] = 0
    np.fill_diagonal(rest, 0)
    for _ in range(FITTING_STEPS):
        by_row = np.sqrt(left / np.maximum(rest.sum(axis=1), 1e-12))
        rest *= np.outer(by_row, by_row)
    return target + rest, given


def _dealt(counts: npt.NDArray[np.int64], tokens: int, k: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """`[tokens, k]` experts: each as often as counted, to the tokens that have chosen fewest so far. That always comes out even."""
    rows, room = np.full((tokens, k), -1, dtype=np.int64), np.full(tokens, k)
    for expert in np.argsort(-counts, kind="stable"):
        taken = np.lexsort((generator.random(tokens), -room))[: counts[expert]]
        rows[taken, k - room[taken]] = expert
        room[taken] -= 1
    return rows


@njit(cache=True, nogil=True)
def _exchange(rows: Any, gap: Any, weight: Any, tries: int, seed: int) -> None:
    """Let two tokens at a time exchange an expert each where that brings counts of pairs nearer to their targets: less squared error,
    each pair's over its target. Changes `rows` and `gap`.

    Args:
        gap: `[experts, experts]` counts of pairs, less their targets.
        weight: `[experts, experts]` of each pair's squared error.
    """
    np.random.seed(seed)
    tokens, k = rows.shape
    for _ in range(tries):
        one, other, p, q = np.random.randint(tokens), np.random.randint(tokens), np.random.randint(k), np.random.randint(k)
        a, b = rows[one, p], rows[other, q]
        apart = one != other and a != b
        for i in range(k):
            apart = apart and rows[one, i] != b and rows[other, i] != a
        if not apart:
            continue
        change = 0.0
        for i in range(k):
            if i != p:
                x = rows[one, i]
                change += (1 - 2 * gap[a, x]) * weight[a, x] + (1 + 2 * gap[b, x]) * weight[b, x]
            if i != q:
                x = rows[other, i]
                change += (1 - 2 * gap[b, x]) * weight[b, x] + (1 + 2 * gap[a, x]) * weight[a, x]
        if change < 0:
            _move(rows[one], p, gap, a, b)
            _move(rows[other], q, gap, b, a)
            rows[one, p], rows[other, q] = b, a


@njit(cache=True, nogil=True)
def _move(row: Any, at: int, gap: Any, out: int, into: int) -> None:
    """Count the pairs of a token anew whose choice `at` becomes another expert."""
    for i in range(len(row)):
        if i != at:
            x = row[i]
            gap[out, x] -= 1
            gap[x, out] -= 1
            gap[into, x] += 1
            gap[x, into] += 1
