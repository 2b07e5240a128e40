"""Tiers of links, found in a matrix of measured bandwidths (docs/discover.md#how-tiers-are-found).

A tier may have links that are worse than the others: nothing makes one better than its kind. So the better direction of a pair counts,
groups are joined by the mean of *squared* bandwidths, and a slow pair costs a partition little, a fast one much.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import cophenet, fcluster, linkage
from scipy.spatial.distance import squareform

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Groups = tuple[tuple[int, ...], ...]

_CUTS = 8
"""Largest gaps between the levels of merges that are tried as borders."""
_MOST_TIERS = 5
_LEAST_RATIO = math.log(1.3)
"""Between two tiers' bandwidths; less is one tier."""
_LEAST_SPREADS = 2.5
"""Between two tiers' bandwidths, in standard deviations inside them: halves of one bell curve are 1.6 apart. Of many pairs the few best
are farther apart by chance: there it is what the best of so many is expected to be above their mean, over the root of a rank's pairs."""
_MARGIN = 1.25
"""Over what is expected by chance."""
_SLOW = math.log(1.5)
"""From where on a slow pair is a bad link, which costs no more however bad it is."""
_PER_TIER = 2 * _SLOW**2
"""What a tier must explain: more than two bad links."""


@dataclass(frozen=True, kw_only=True)
class FoundTier:
    """One kind of link."""

    groups: Groups
    """Ranks that reach each other over it or a narrower tier, each group in order, groups by their first rank."""
    pairs: npt.NDArray[np.bool_]
    """`[ranks, ranks]` whether two ranks use it: symmetric."""
    bandwidth: float
    """Bytes per second: the median of its pairs, both directions."""
    spread: float
    """How far its pairs are off `bandwidth`, over it: the median, both directions."""
    agreement: float
    """Share of its pairs that are nearer to it than to another tier."""


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The pairs between two cuts, taken as one tier."""

    level: float
    """Logarithm of the bandwidth."""
    deviation: float
    loss: float
    pairs: int
    pairs_of_rank: float
    """Mean, over ranks that have any."""


def find_tiers(bandwidth: Floats, among: Collection[Groups] | None = None) -> tuple[FoundTier, ...]:
    """The tiers of a cluster, narrow to wide; the last joins all ranks.

    >>> links = np.array([[1, 9, 3, 3], [9, 1, 3, 3], [3, 3, 1, 9], [3, 3, 9, 1]]) * 1e9
    >>> [(tier.groups, tier.bandwidth) for tier in find_tiers(links)]
    [(((0, 1), (2, 3)), 9000000000.0), (((0, 1, 2, 3),), 3000000000.0)]

    Args:
        bandwidth: `[ranks, ranks]` bytes per second from each (row) to each; the diagonal is not read. At least two ranks.
        among: the only groups that a tier may have, beside the widest's; None = any.
    """
    best = np.maximum(bandwidth, bandwidth.T)
    np.fill_diagonal(best, 1.0)
    logs = squareform(np.log(best), checks=False)
    top = np.exp(logs.max())
    squares = 1 - (np.exp(logs) / top) ** 2
    tree = linkage(squares, "average")
    merged = cophenet(tree)
    cuts = _candidates(tree[:, 2])
    chosen = [cut for cut in _chosen(cuts, merged, logs) if among is None or _groups(tree, cut) in among]
    tier_of_pair = np.searchsorted(chosen, merged)
    levels = [_median(logs[tier_of_pair == tier]) for tier in range(len(chosen) + 1)]
    borders = [*chosen, np.inf]
    groups = [_groups(tree, border) for border in borders]
    return tuple(_tier(tier, levels, logs, tier_of_pair, bandwidth, groups[tier]) for tier in range(len(levels)))


def _candidates(heights: Floats) -> list[float]:
    """Heights of the tree between two merges whose bandwidths are far apart."""
    heights = np.maximum.accumulate(heights)
    levels = np.log(np.maximum(1 - heights, np.finfo(float).tiny)) / 2
    gaps = levels[:-1] - levels[1:]
    far = [merge for merge in np.argsort(-gaps, kind="stable")[:_CUTS] if gaps[merge] > 1e-3]
    return sorted(float(heights[merge] + heights[merge + 1]) / 2 for merge in far)


def _chosen(cuts: list[float], merged: Floats, logs: Floats) -> list[float]:
    """The cuts that explain the bandwidths best, of those whose tiers are far enough apart."""
    cell = np.searchsorted(cuts, merged)
    square = squareform(cell)
    parts = {}
    for first, last in combinations(range(len(cuts) + 2), 2):
        inside = (cell >= first) & (cell < last)
        ranks = ((square >= first) & (square < last) & ~np.eye(len(square), dtype=bool)).any(axis=1).sum()
        if inside.any():
            parts[first, last] = _part(logs[inside], int(ranks))
    best = math.inf
    found: tuple[int, ...] = ()
    for count in range(min(_MOST_TIERS, len(cuts) + 1)):
        for borders in combinations(range(1, len(cuts) + 1), count):
            edges = [0, *borders, len(cuts) + 1]
            tiers = [parts.get(edge) for edge in pairwise(edges)]
            loss = _loss(tiers)
            if loss < best - 1e-12:
                best, found = loss, borders
    return [cuts[border - 1] for border in found]


def _loss(tiers: list[_Part | None]) -> float:
    """Of these tiers, narrow to wide; infinite where two are not apart."""
    loss = _PER_TIER * len(tiers)
    for narrow, wide in zip(tiers, [*tiers[1:], None], strict=True):
        if narrow is None:
            return math.inf
        loss += narrow.loss
        if wide is not None and narrow.level - wide.level < _least_gap(narrow, wide):
            return math.inf
    return loss


def _least_gap(narrow: _Part, wide: _Part) -> float:
    """Between the levels of two tiers."""
    by_chance = math.sqrt(2 * math.log(narrow.pairs + wide.pairs) / narrow.pairs_of_rank)
    return max(_LEAST_RATIO, max(_LEAST_SPREADS, _MARGIN * by_chance) * max(narrow.deviation, wide.deviation))


def _part(logs: Floats, ranks: int) -> _Part:
    level = _median(logs)
    off = logs - level
    loss = np.where(off > 0, off**2, np.minimum(off**2, _SLOW**2)).sum()
    return _Part(
        level=level,
        deviation=1.4826 * float(np.median(np.abs(off))),
        loss=float(loss),
        pairs=len(logs),
        pairs_of_rank=2 * len(logs) / ranks,
    )


def _median(logs: Floats) -> float:
    """The upper one, where there are two."""
    return float(np.partition(logs, len(logs) // 2)[len(logs) // 2])


def _groups(tree: Floats, border: float) -> Groups:
    label = fcluster(tree, border, "distance")
    groups = [tuple(np.flatnonzero(label == name).tolist()) for name in np.unique(label)]
    return tuple(sorted(groups))


def _tier(tier: int, levels: list[float], logs: Floats, tier_of_pair: Ints, bandwidth: Floats, groups: Groups) -> FoundTier:
    own = tier_of_pair == tier
    pairs = squareform(own).astype(bool)
    both_ways = bandwidth[pairs]
    level = float(np.partition(both_ways, len(both_ways) // 2)[len(both_ways) // 2])
    nearest = np.abs(logs[own][:, None] - np.array(levels)).argmin(axis=1)
    return FoundTier(
        groups=groups,
        pairs=pairs,
        bandwidth=level,
        spread=float(np.median(np.abs(both_ways / level - 1))),
        agreement=float((nearest == tier).mean()),
    )
