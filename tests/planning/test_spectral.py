import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_moe.errors import UsageError
from grace_moe.planning.paper.spectral import spectral_groups


def blocks(*sizes: int, inside: int = 10, outside: int = 1) -> np.ndarray:
    """Affinity of experts in contiguous blocks."""
    block = np.repeat(np.arange(len(sizes)), sizes)
    affinity = np.where(block[:, None] == block[None, :], inside, outside)
    np.fill_diagonal(affinity, 0)
    return affinity.astype(np.int64)


def as_sets(groups):
    return {frozenset(group) for group in groups}


def assert_partition(groups, num_experts, num_groups):
    assert len(groups) == num_groups
    assert all(groups), "a group is empty"
    assert sorted(expert for group in groups for expert in group) == list(range(num_experts))
    assert all(list(group) == sorted(group) for group in groups)


def test_dense_blocks_of_unequal_size_are_found():
    groups = spectral_groups(blocks(6, 3, 3), 3)
    assert as_sets(groups) == {frozenset(range(6)), frozenset({6, 7, 8}), frozenset({9, 10, 11})}
    # First the group of the expert with the most affinity.
    assert groups[0] == tuple(range(6))


def test_pieces_without_any_affinity_between_them():
    assert as_sets(spectral_groups(blocks(4, 4, outside=0), 2)) == {frozenset(range(4)), frozenset(range(4, 8))}


def test_one_group_holds_all():
    assert spectral_groups(blocks(2, 3), 1) == ((0, 1, 2, 3, 4),)


def test_as_many_groups_as_experts():
    assert spectral_groups(blocks(2, 2), 4) == ((0,), (1,), (2,), (3,))


def test_no_affinity_deals_the_experts_out():
    assert spectral_groups(np.zeros((5, 5), dtype=np.int64), 2) == ((0, 2, 4), (1, 3))


def test_idle_experts_go_to_the_smallest_group():
    affinity = np.zeros((7, 7), dtype=np.int64)
    affinity[:5, :5] = blocks(3, 2)
    # Blocks {0, 1, 2} and {3, 4}; 5 goes to the smaller one, then 6 to the first of two equal ones.
    assert spectral_groups(affinity, 2) == ((0, 1, 2, 6), (3, 4, 5))


def test_fewer_active_experts_than_groups():
    affinity = np.zeros((5, 5), dtype=np.int64)
    affinity[0, 3] = affinity[3, 0] = 2
    assert spectral_groups(affinity, 4) == ((0, 4), (3,), (1,), (2,))


def test_equal_rows_still_fill_every_group():
    # All pairs alike: k-means may find fewer distinct points than groups.
    for num_groups in range(2, 8):
        assert_partition(spectral_groups(blocks(8), num_groups), 8, num_groups)


def test_numbering_does_not_matter():
    generator = np.random.default_rng(3)
    noise = generator.integers(0, 9, (20, 20))
    affinity = blocks(7, 5, 8, inside=40, outside=3) + noise + noise.T
    np.fill_diagonal(affinity, 0)
    groups = spectral_groups(affinity, 4, seed=5)
    order = generator.permutation(20)  # new number of expert i is where order holds i
    number = np.argsort(order)
    relabelled = spectral_groups(affinity[np.ix_(order, order)], 4, seed=5)
    assert [set(group) for group in relabelled] == [{int(number[e]) for e in group} for group in groups]


@pytest.mark.parametrize("num_groups", [0, 4])
def test_more_groups_than_experts_is_an_error(num_groups):
    with pytest.raises(UsageError, match=f"{num_groups} groups of 3 experts.*at most 3"):
        spectral_groups(blocks(3), num_groups)


@settings(max_examples=40)
@given(data=st.data())
def test_any_sparse_graph_gives_a_partition_twice_the_same(data):
    num_experts = data.draw(st.integers(1, 12))
    num_groups = data.draw(st.integers(1, num_experts))
    affinity = np.zeros((num_experts, num_experts), dtype=np.int64)
    pair = st.tuples(st.integers(0, num_experts - 1), st.integers(0, num_experts - 1), st.sampled_from([1, 2, 1000]))
    for i, j, weight in data.draw(st.lists(pair, max_size=30)):
        if i != j:
            affinity[i, j] = affinity[j, i] = weight
    groups = spectral_groups(affinity, num_groups, seed=1)
    assert_partition(groups, num_experts, num_groups)
    assert spectral_groups(affinity, num_groups, seed=1) == groups
