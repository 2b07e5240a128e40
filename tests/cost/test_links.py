"""Which link two devices use, and how long the busiest port takes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.cost.links import busiest_port, tiers_of
from grace_moe.topology import Topology


def cluster(**links) -> Topology:
    """4 nodes of 2 devices: 100 B/s inside, 10 B/s between, no latency."""
    inside, across = {"bandwidth_bytes_per_s": 100, "latency_s": 0}, {"bandwidth_bytes_per_s": 10, "latency_s": 0}
    return Topology.from_dict({"nodes": [{"devices": [{}, {}]}] * 4, "links": {"intra_node": inside, "cross_node": across} | links})


RACK = {"bandwidth_bytes_per_s": 50, "latency_s": 0.5, "devices_per_group": 4}


def test_the_narrowest_tier_that_has_both_counts():
    tiers = tiers_of(cluster(rack=RACK))
    assert tiers.names == ("intra_node", "rack", "cross_node")
    assert tiers.of_pairs(np.array([0, 0, 0]), np.array([1, 3, 4])).tolist() == [0, 1, 2]
    assert tiers.node == 0


def test_a_tier_inside_a_node_comes_first():
    socket = {"bandwidth_bytes_per_s": 200, "latency_s": 0, "groups": [[0], [1]]}
    tiers = tiers_of(cluster(socket=socket))
    assert tiers.names == ("socket", "intra_node", "cross_node")
    assert tiers.node == 1
    assert tiers.of_pairs(np.array([0, 2]), np.array([1, 3])).tolist() == [1, 1]


@given(sender=st.integers(0, 7), receiver=st.integers(0, 7))
def test_both_ways_use_the_same_tier(sender, receiver):
    tiers = tiers_of(cluster(rack=RACK))
    assert tiers.of_pairs(np.array(sender), np.array(receiver)) == tiers.of_pairs(np.array(receiver), np.array(sender))


def ports(topology, sent) -> np.ndarray:
    """`sent[device][tier]` copies, and nothing taken in that takes longer."""
    copies = np.zeros((1, 2, 8, len(tiers_of(topology).names)))
    for (device, tier), count in sent.items():
        copies[0, 0, device, tier] = count
    return copies


def seconds(topology, sent) -> float:
    return float(busiest_port(ports(topology, sent), 10, tiers_of(topology), topology)[0])


def test_a_port_sends_one_after_the_other_and_tiers_at_once():
    assert seconds(cluster(), {(0, 1): 3}) == 3.0
    assert seconds(cluster(), {(0, 1): 3, (1, 1): 2}) == 3.0
    assert seconds(cluster(), {(0, 0): 20, (0, 1): 3}) == 3.0


def test_the_latency_is_of_the_widest_tier_in_use():
    assert seconds(cluster(rack=RACK), {(0, 1): 5}) == 1.5
    assert seconds(cluster(rack=RACK), {}) == 0.0


def test_rails_are_shared_by_a_node():
    """Each device could send 10 B/s, and both of a node together only 10."""
    shared = {"bandwidth_bytes_per_s": 10, "latency_s": 0, "shared_bytes_per_s": 10}
    assert seconds(cluster(cross_node=shared), {(0, 1): 3, (1, 1): 2}) == 5.0
    assert seconds(cluster(cross_node=shared), {(0, 1): 3, (2, 1): 2}) == 3.0


def test_a_matrix_replaces_the_tiers_bandwidths():
    topology = cluster()
    per_rate = np.zeros((1, 2, 8))
    per_rate[0, 1, 5] = 0.75  # three copies over a link of 4 B/s
    got = busiest_port(ports(topology, {(0, 1): 3}), 10, tiers_of(topology), topology, per_rate)
    assert got == pytest.approx([7.5])
