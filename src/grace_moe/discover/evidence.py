"""What measurements show and what they don't: links to measure again, and tiers that were seen twice (docs/discover.md#how-it-measures)."""

from __future__ import annotations

import numpy as np

from grace_moe.discover.measured import Measured
from grace_moe.discover.tiers import FoundTier, Groups, find_tiers

_ALIKE = 0.9
"""Of a link's fastest stream, or of its tier's bandwidth: what is less is doubted."""


def doubtful(measured: Measured) -> list[tuple[int, int]]:
    """Pairs of ranks, lower one first, to measure again: the two fastest streams of a direction differ, or it is slower than its tier."""
    level = np.zeros_like(measured.bandwidth)
    for tier in find_tiers(measured.bandwidth):
        level[tier.pairs] = tier.bandwidth
    differs = measured.again < _ALIKE * measured.bandwidth
    slower = measured.bandwidth < _ALIKE * level
    return [(int(i), int(j)) for i, j in np.argwhere(np.triu(differs | differs.T | slower | slower.T, 1))]


def sure_tiers(measured: Measured) -> tuple[tuple[FoundTier, ...], tuple[Groups, ...]]:
    """The tiers that the fastest streams show, and the second fastest, and those that are as much faster again; and the groups that not all
    of the three do."""
    ahead = measured.bandwidth * np.divide(
        measured.bandwidth, measured.again, out=np.ones_like(measured.again), where=measured.again < np.inf
    )
    seen = [{tier.groups for tier in find_tiers(rates)} for rates in (measured.again, measured.bandwidth, ahead)]
    sure = set.intersection(*seen)
    return find_tiers(measured.bandwidth, among=sure), tuple(sorted(set.union(*seen) - sure))
