import numpy as np
import pytest
from benchmarks.made_clusters import label_of, made, random_cluster
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from grace_moe.discover.tiers import find_tiers


def groups_of(bandwidth):
    return [tier.groups for tier in find_tiers(np.asarray(bandwidth, dtype=float))]


@given(seed=st.integers(0, 10**6), noise=st.floats(0, 0.06))
def test_every_tier_of_a_small_cluster_is_found_beside_a_bad_link(seed, noise):
    cluster = random_cluster(seed)
    bandwidth = cluster.bandwidth()
    np.fill_diagonal(bandwidth, 1.0)
    off = np.random.default_rng(seed).uniform(1 - noise, 1 + noise, bandwidth.shape)
    found = find_tiers(bandwidth * off)
    assert {tier.groups for tier in found} == set(cluster.tiers)
    rates = dict(zip(cluster.partitions, cluster.rates, strict=True))
    for tier in found:
        if tier.pairs.sum() > 6:  # of few pairs the median may be the bad link
            assert tier.bandwidth == pytest.approx(rates[tier.groups], rel=noise + 1e-9)


@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3))
def test_the_unit_and_the_order_of_ranks_do_not_matter(seed, scale):
    bandwidth = random_cluster(seed).bandwidth()
    np.fill_diagonal(bandwidth, 1.0)
    order = np.random.default_rng(seed).permutation(len(bandwidth))
    renamed = [
        {frozenset(int(order[r]) for r in group) for group in groups} for groups in groups_of(bandwidth[np.ix_(order, order)] * scale)
    ]
    assert renamed == [{frozenset(group) for group in groups} for groups in groups_of(bandwidth)]


@pytest.mark.parametrize("shape", [(128, 8), (4, 32, 8), (8, 8, 16), (2, 512)])
def test_1024_ranks_with_noise_of_a_fifth(shape):
    matrix, labels = made(shape, np.random.default_rng(0))
    tiers = find_tiers(matrix)
    assert len(tiers) == len(labels)
    for tier, label in zip(tiers, labels, strict=True):
        assert adjusted_rand_score(label, label_of(tier.groups, 1024)) == 1.0
        assert tier.agreement > 0.99


def test_1024_equal_ranks_are_one_tier():
    matrix, _ = made((1, 1024), np.random.default_rng(0))
    assert len(find_tiers(matrix / 4)) == 1


def test_links_that_fall_off_in_one_direction_do_not_divide_a_node():
    bandwidth = np.full((4, 4), 8.0)
    bandwidth[0, 1:] = 1.0
    (tier,) = find_tiers(bandwidth)
    assert tier.groups == ((0, 1, 2, 3),)


def test_a_faster_pair_is_a_tier_and_a_slower_one_is_not():
    bandwidth = np.full((4, 4), 1.0)
    bandwidth[0, 1] = bandwidth[1, 0] = 4.0
    assert groups_of(bandwidth) == [((0, 1), (2,), (3,)), ((0, 1, 2, 3),)]
    bandwidth[0, 1] = bandwidth[1, 0] = 0.25
    assert groups_of(bandwidth) == [((0, 1, 2, 3),)]
