"""What measurements show and what they don't."""

import numpy as np
import pytest
from benchmarks.made_clusters import random_cluster
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.discover.evidence import doubtful, sure_tiers
from grace_moe.discover.measured import Measured, Sample, gathered
from grace_moe.discover.tiers import find_tiers

TWO_NODES = ((0, 1), (2, 3))
ALL = ((0, 1, 2, 3),)


def rates(inside=8.0, across=2.0):
    matrix = np.full((4, 4), across)
    for node in TWO_NODES:
        matrix[np.ix_(node, node)] = inside
    np.fill_diagonal(matrix, np.inf)
    return matrix


def measured(bandwidth, again):
    return Measured(bandwidth=bandwidth, again=again, latency_s=np.zeros_like(bandwidth), num_measured=6)


def groups(tiers):
    return [tier.groups for tier in tiers]


def test_tiers_that_were_seen_twice_are_sure():
    tiers, unsure = sure_tiers(measured(rates(), rates() * 0.95))
    assert groups(tiers) == [TWO_NODES, ALL]
    assert unsure == ()
    assert doubtful(measured(rates(), rates() * 0.95)) == []


@pytest.mark.parametrize(
    ("bandwidth", "again"),
    [
        (rates(), rates(inside=2.2)),  # fast streams inside nodes came once
        (rates(inside=2.4), rates(inside=1.8)),  # they get faster from stream to stream, and haven't been seen fast enough yet
    ],
)
def test_tiers_that_not_all_streams_show_are_left_out_and_told(bandwidth, again):
    tiers, unsure = sure_tiers(measured(bandwidth, again))
    assert groups(tiers) == [ALL]
    assert unsure == (TWO_NODES,)
    assert doubtful(measured(bandwidth, again)) == [(0, 1), (2, 3)]


def test_a_link_slower_than_its_tier_is_doubted():
    slow = rates()
    slow[3, 0] = 1.5
    assert doubtful(measured(slow, slow)) == [(0, 3)]


def test_the_two_fastest_streams_of_all_samples_count():
    samples = [
        Sample(sender=0, receiver=1, rates=(3.0, 5.0), latency_s=0.2),
        Sample(sender=0, receiver=1, rates=(4.0, 1.0), latency_s=0.4),
        Sample(sender=1, receiver=0, rates=(7.0, 6.0), latency_s=0.4),
    ]
    found = gathered(samples, ["a", "b"])
    assert (found.bandwidth[0, 1], found.again[0, 1]) == (5.0, 4.0)
    assert (found.bandwidth[1, 0], found.again[1, 0]) == (7.0, 6.0)
    assert found.latency_s[0, 1] == found.latency_s[1, 0] == pytest.approx(0.3)
    assert found.num_measured == 1


@given(seed=st.integers(0, 10**6), noise=st.floats(0, 0.9))
def test_sure_tiers_are_among_those_that_the_fastest_streams_show(seed, noise):
    cluster = random_cluster(seed).bandwidth()
    chance = np.random.default_rng(seed)
    streams = cluster * chance.uniform(1 - noise, 1, (2, *cluster.shape))
    both = measured(streams.max(axis=0), streams.min(axis=0))
    tiers, unsure = sure_tiers(both)
    shown = groups(find_tiers(both.bandwidth))
    assert set(groups(tiers)) | {shown[-1]} <= set(shown)
    assert groups(tiers)[-1] == shown[-1]
    assert not set(unsure) & set(groups(tiers))
