"""A partition of experts into groups, and the two measures that the choice of r weighs (docs/method.md#choosing-r)."""

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Groups: TypeAlias = tuple[tuple[int, ...], ...]
"""The experts of each group, ascending; every expert is in exactly one group."""


def as_groups(groups: Iterable[Iterable[int]]) -> Groups:
    """The same groups, each in ascending order."""
    return tuple(tuple(sorted(int(expert) for expert in group)) for group in groups)


def membership(groups: Groups, num_experts: int) -> npt.NDArray[np.int64]:
    """`[experts, groups]` 1 where the group holds the expert."""
    matrix = np.zeros((num_experts, len(groups)), dtype=np.int64)
    for index, group in enumerate(groups):
        matrix[list(group), index] = 1
    return matrix


def utilisation(affinity: npt.NDArray[np.int64], groups: Groups) -> float:
    """U: affinity inside groups over all affinity; 0 where there is none. 1 = nothing is cut."""
    total = int(affinity.sum())
    inside = sum(int(affinity[np.ix_(group, group)].sum()) for group in groups)
    return inside / total if total else 0.0


def size_deviation(sizes: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """S: root mean square distance of the group sizes from the expected ones (E)."""
    return float(np.sqrt(np.mean((np.asarray(sizes, dtype=np.float64) - np.asarray(expected, dtype=np.float64)) ** 2)))
