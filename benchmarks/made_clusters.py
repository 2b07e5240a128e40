"""Clusters with known tiers, for `grace-moe discover`: small random ones, and large matrices with noise."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What was built."""

    partitions: tuple[Groups, ...]
    """Narrow to wide; the last joins all ranks."""
    rates: tuple[float, ...]
    """Bytes per second of each tier."""
    bad: tuple[int, int, float] | None
    """Two ranks, and the bytes per second between them."""

    @property
    def ranks(self) -> int:
        """How many."""
        return len(self.partitions[-1][0])

    @property
    def tiers(self) -> tuple[Groups, ...]:
        """Partitions that differ, without the one of ranks alone: what can be measured."""
        return tuple(dict.fromkeys(groups for groups in self.partitions if any(len(group) > 1 for group in groups)))

    def bandwidth(self) -> np.ndarray:
        """`[ranks, ranks]` of each pair."""
        found = np.full((self.ranks, self.ranks), np.inf)
        for groups, rate in zip(self.partitions[::-1], self.rates[::-1], strict=True):
            for group in groups:
                found[np.ix_(group, group)] = rate
        if self.bad is not None:
            i, j, rate = self.bad
            found[i, j] = found[j, i] = rate
        np.fill_diagonal(found, np.inf)
        return found


def random_cluster(seed: int, widest: tuple[float, float] = (30e6, 40e6)) -> Cluster:
    """2 to 8 ranks in 1 to 3 tiers, each 2 to 3 times as fast as the next wider one; unequal groups are as likely as equal ones.

    One link has a fifth to three fifths of its kind's rate, where another link tells what kind its ranks are of: of two ranks alone on a
    node with a bad link between them nothing but the bad link is known.

    Args:
        widest: bytes per second of the widest tier, from and to.
    """
    chance = random.Random(seed)
    ranks, depth = chance.randint(2, 8), chance.randint(1, 3)
    partitions: list[Groups] = [(tuple(range(ranks)),)]
    for _ in range(depth - 1):
        partitions.insert(0, tuple(part for group in partitions[0] for part in _cut(group, chance)))
    rates = [chance.uniform(*widest)]
    for _ in range(depth - 1):
        rates.insert(0, rates[0] * chance.uniform(2, 3))
    cluster = Cluster(partitions=tuple(partitions), rates=tuple(rates), bad=None)
    whole = cluster.bandwidth()
    known = [(i, j) for i in range(ranks) for j in range(i) if all((np.delete(whole[a], [i, j]) == whole[i, j]).any() for a in (i, j))]
    if not known:
        return cluster
    i, j = chance.choice(known)
    return Cluster(partitions=cluster.partitions, rates=cluster.rates, bad=(i, j, float(whole[i, j] * chance.uniform(0.2, 0.6))))


def _cut(group: tuple[int, ...], chance: random.Random) -> list[tuple[int, ...]]:
    """A group in two to four parts, in order."""
    if len(group) == 1:
        return [group]
    parts = chance.randint(2, min(4, len(group)))
    borders = sorted(chance.sample(range(1, len(group)), parts - 1))
    if chance.random() < 0.5 and len(group) % parts == 0:
        borders = list(range(len(group) // parts, len(group), len(group) // parts))
    edges = [0, *borders, len(group)]
    return [group[start:end] for start, end in pairwise(edges)]


def made(shape: tuple[int, ...], chance: np.random.Generator, ratio: float = 4.0) -> tuple[np.ndarray, list[np.ndarray]]:
    """Bandwidths of nested equal groups, each tier `ratio` times the next wider one, each number off by a normal 20%; and each tier's group
    of each rank, narrow to wide."""
    size = ranks = int(np.prod(shape))
    matrix, labels = np.full((ranks, ranks), 1e9), [np.zeros(ranks, dtype=int)]
    for parts in shape[:-1]:
        size //= parts
        label = np.arange(ranks) // size
        matrix[label[:, None] == label[None]] *= ratio
        labels.insert(0, label)
    return matrix * np.maximum(0.05, chance.normal(1, 0.2, matrix.shape)), labels


def label_of(groups: tuple[tuple[int, ...], ...], ranks: int) -> np.ndarray:
    """`[ranks]` group of each."""
    label = np.empty(ranks, dtype=int)
    for number, group in enumerate(groups):
        label[list(group)] = number
    return label
