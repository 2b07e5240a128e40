"""Controlled non-uniform grouping, step by step (docs/method.md#group)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_moe.planning.paper.sizes import controlled_sizes, free_sizes, hold_sizes, uniform_sizes, within_limits


def symmetric(num_experts: int, pairs: dict[tuple[int, int], int]) -> np.ndarray:
    affinity = np.zeros((num_experts, num_experts), dtype=np.int64)
    for (i, j), weight in pairs.items():
        affinity[i, j] = affinity[j, i] = weight
    return affinity


def clique(members, weight):
    return {(i, j): weight for i in members for j in members if i < j}


@pytest.mark.parametrize(
    ("experts", "groups", "ratio", "bounds"),
    [
        (64, 4, 0.15, (14, 18)),  # E = 16, d = round(2.4) = 2
        (64, 4, 0.16, (13, 19)),  # d = round(2.56) = 3
        (64, 4, 0.0, (15, 17)),  # d is at least 1
        (64, 4, 1.0, (1, 32)),  # at least 1 expert
        (10, 4, 0.5, (1, 3)),  # E = floor(2.5) = 2, d = 1
        (8, 8, 0.3, (1, 2)),  # E = 1
    ],
)
def test_controlled_bounds(experts, groups, ratio, bounds):
    assert controlled_sizes(experts, groups, ratio) == bounds


def test_uniform_and_free_bounds():
    assert uniform_sizes(64, 4) == (16, 16)
    assert uniform_sizes(10, 4) == (2, 3)
    assert free_sizes(10, 4) == (1, 7)


def test_step_1_keeps_the_highest_intra_group_affinity():
    # Expert 5 has 5 with its fellows, the others 40 or more: it leaves for the only group with room.
    affinity = symmetric(8, clique(range(5), 10) | {(i, 5): 1 for i in range(5)} | {(6, 7): 3})
    assert hold_sizes(affinity, ((0, 1, 2, 3, 4, 5), (6, 7)), [3, 3], [5, 5]) == ((0, 1, 2, 3, 4), (5, 6, 7))


def test_step_2_goes_where_it_adds_the_most_affinity():
    # Expert 3 is the one too many; it shares 1 token with expert 4 and 2 with expert 5.
    affinity = symmetric(6, clique(range(3), 9) | {(0, 3): 1, (3, 4): 1, (3, 5): 2})
    assert hold_sizes(affinity, ((0, 1, 2, 3), (4,), (5,)), [1] * 3, [3] * 3) == ((0, 1, 2), (4,), (3, 5))


def test_step_2_strongest_first_while_there_is_room():
    # 3 (affinity 6) and 4 (affinity 4) must leave; both prefer group 1, which has one place: 3 comes first.
    affinity = symmetric(7, clique(range(3), 9) | {(0, 3): 6, (0, 4): 4, (3, 5): 5, (4, 5): 5, (4, 6): 1})
    assert hold_sizes(affinity, ((0, 1, 2, 3, 4), (5,), (6,)), [1] * 3, [3, 2, 3]) == ((0, 1, 2), (3, 5), (4, 6))


def test_step_3_takes_the_weakest_of_oversized_groups():
    # Bounds [2, 4]; group 2 lacks one. Weakest inside a group above the mean of 3 is expert 7 (3 tokens), although
    # expert 3 would add more to group 2.
    affinity = symmetric(9, clique(range(4), 5) | clique(range(4, 7), 5) | {(4, 7): 3, (3, 8): 4})
    assert hold_sizes(affinity, ((0, 1, 2, 3), (4, 5, 6, 7), (8,)), [2] * 3, [4] * 3) == ((0, 1, 2, 3), (4, 5, 6), (7, 8))


def test_step_3_spares_groups_that_are_not_oversized():
    # Mean 3: group 1 (3 experts) is weakest inside, but only group 0 (5) is oversized.
    affinity = symmetric(9, clique(range(5), 5))
    assert hold_sizes(affinity, ((0, 1, 2, 3, 4), (5, 6, 7), (8,)), [2] * 3, [5] * 3) == ((1, 2, 3, 4), (5, 6, 7), (0, 8))


def test_sizes_within_bounds_stay_as_they_are():
    affinity = symmetric(6, {})
    assert hold_sizes(affinity, ((3, 4, 5), (0, 1, 2)), [2, 2], [4, 4]) == ((3, 4, 5), (0, 1, 2))


def test_limits_cut_the_bounds_and_widen_where_there_is_room():
    rule = uniform_sizes
    assert within_limits(rule, 8, [8, 8]) == ([4, 4], [4, 4])
    # One device has room for 2 only: the other must take 6.
    assert within_limits(rule, 8, [2, 8]) == ([2, 4], [2, 6])


@settings(max_examples=80)
@given(data=st.data())
def test_bounds_hold_for_any_clusters(data):
    num_groups = data.draw(st.integers(1, 5))
    num_experts = data.draw(st.integers(num_groups, 20))
    ratio = data.draw(st.floats(0, 1))
    owner = data.draw(st.lists(st.integers(0, num_groups - 1), min_size=num_experts, max_size=num_experts))
    clusters = tuple(tuple(e for e in range(num_experts) if owner[e] == g) for g in range(num_groups))
    upper = np.triu(np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 5, (num_experts, num_experts)), 1)
    lowest, highest = controlled_sizes(num_experts, num_groups, ratio)
    held = hold_sizes(upper + upper.T, clusters, [lowest] * num_groups, [highest] * num_groups)
    assert sorted(e for group in held for e in group) == list(range(num_experts))
    assert all(lowest <= len(group) <= highest for group in held)
