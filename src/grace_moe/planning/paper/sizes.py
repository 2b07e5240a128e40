"""Group sizes: fully non-uniform, controlled non-uniform, uniform, and how they are held (docs/method.md#group)."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from grace_moe.planning.groups.partition import Groups, as_groups, membership

SizeRule: TypeAlias = Callable[[int, int], tuple[int, int]]
"""(experts, groups) -> fewest and most experts of a group."""


def free_sizes(num_experts: int, num_groups: int) -> tuple[int, int]:
    """Fully non-uniform: the clusters as they come, none empty."""
    return 1, num_experts - num_groups + 1


def uniform_sizes(num_experts: int, num_groups: int) -> tuple[int, int]:
    """Uniform: sizes differ by at most one."""
    return num_experts // num_groups, -(-num_experts // num_groups)


def controlled_sizes(num_experts: int, num_groups: int, ratio: float) -> tuple[int, int]:
    """Controlled non-uniform: [E - d, E + d], where E = floor(n / D') and d = max(1, round(E r)); at least 1."""
    expected = num_experts // num_groups
    slack = max(1, round(expected * ratio))
    return max(1, expected - slack), expected + slack


def within_limits(rule: SizeRule, num_experts: int, limits: Sequence[int]) -> tuple[list[int], list[int]]:
    """Fewest and most experts of each group: the rule's, cut to each group's limit.

    Where that leaves too little room for all experts, the groups with room take more than the rule says.

    Args:
        limits: most experts that each group may hold; together at least `num_experts`.
    """
    fewest, most = rule(num_experts, len(limits))
    highest = [min(most, limit) for limit in limits]
    while sum(highest) < num_experts:
        group = min((g for g, limit in enumerate(limits) if highest[g] < limit), key=highest.__getitem__)
        highest[group] += 1
    return [min(fewest, high) for high in highest], highest


def hold_sizes(affinity: npt.NDArray[np.int64], clusters: Groups, lowest: Sequence[int], highest: Sequence[int]) -> Groups:
    """Bring every cluster's size into its bounds, by the three steps of docs/method.md#group.

    Ties go to the smaller group, then to the lower number. "Oversized" in step 3 is a group above the mean size.

    Args:
        affinity: `[experts, experts]`.
        clusters: a partition of the experts.
        lowest, highest: bounds of each group's size; the sums must enclose the number of experts.
    """
    num_experts, num_groups = len(affinity), len(clusters)
    inside = membership(clusters, num_experts)
    owner = inside.argmax(axis=1)
    size = inside.sum(axis=0)
    strength = affinity @ inside  # [experts, groups]: affinity of each expert to each group's members

    def take(expert: int) -> None:
        group = owner[expert]
        owner[expert] = -1
        size[group] -= 1
        strength[:, group] -= affinity[:, expert]

    def put(expert: int, group: int) -> None:
        owner[expert] = group
        size[group] += 1
        strength[:, group] += affinity[:, expert]

    # Step 1: oversized clusters keep the experts with the highest intra-group affinity.
    released: list[tuple[int, int]] = []
    for group in range(num_groups):
        members = np.flatnonzero(owner == group)
        ranked = members[np.argsort(-strength[members, group], kind="stable")]
        released += [(-int(strength[expert, group]), int(expert)) for expert in ranked[highest[group] :]]
    homeless = [expert for _, expert in sorted(released)]
    for expert in homeless:
        take(expert)

    # Step 2: each of the others, strongest first, goes to the group with room where it adds the most affinity.
    for expert in homeless:
        room = [group for group in range(num_groups) if size[group] < highest[group]]
        put(expert, min(room, key=lambda g: (-int(strength[expert, g]), int(size[g]), g)))

    # Step 3: undersized groups take the weakest-affinity experts of oversized ones.
    while (missing := np.asarray(lowest) - size).max() > 0:
        spare = size > np.asarray(lowest)
        oversized = spare & (size > num_experts // num_groups)
        offered = np.flatnonzero((oversized if oversized.any() else spare)[owner])
        expert = int(offered[strength[offered, owner[offered]].argmin()])
        take(expert)
        put(expert, int(missing.argmax()))
    return as_groups(np.flatnonzero(owner == group) for group in range(num_groups))
