"""Declared against measured, and the topology file that comes of it."""

from dataclasses import replace

import numpy as np
import pytest

from grace_moe.discover.declared import Declaration
from grace_moe.discover.finding import discover, topology_of
from grace_moe.discover.measured import Measured, filled, pairs_to_measure, rounds_of
from grace_moe.topology import Topology

from .samples import facts


def measured_of(groups, inside=8e9, across=2e9, ranks=4):
    bandwidth = np.full((ranks, ranks), across)
    for group in groups:
        bandwidth[np.ix_(group, group)] = inside
    np.fill_diagonal(bandwidth, np.inf)
    latency = np.where(bandwidth == across, 2e-5, 5e-6)
    return Measured(bandwidth=bandwidth, again=bandwidth, latency_s=latency, num_measured=ranks * (ranks - 1) // 2)


def declared(*groups, nodes=True, source="torchrun"):
    return Declaration(source=source, groups=groups, nodes=nodes)


PAIRS = measured_of([(0, 1), (2, 3)])


def test_what_is_declared_and_measured_alike_contradicts_nothing():
    found = discover(PAIRS, [declared((0, 1), (2, 3))])
    assert found.contradictions == ()
    topology = topology_of(found, PAIRS, facts("aabb"), {})
    assert topology.shape == "2x2"
    assert (topology.intra_node.bandwidth_bytes_per_s, topology.cross_node.bandwidth_bytes_per_s) == (8e9, 2e9)
    assert (topology.intra_node.latency_s, topology.cross_node.latency_s) == (5e-6, 2e-5)
    assert topology.bandwidth is None


def test_the_file_is_read_again_with_its_confidence(tmp_path):
    found = discover(PAIRS, [declared((0, 1, 2, 3))])
    topology = topology_of(found, PAIRS, facts("aabb"), {1: 3e9})
    topology.save(tmp_path / "t.json")
    again = Topology.parse(str(tmp_path / "t.json"))
    assert again == topology
    assert again.cross_node.shared_bytes_per_s == 3e9
    assert [tier["agreement"] for tier in again.discovered["tiers"]] == [1.0, 1.0]


def test_contradictions_are_sentences():
    (said,) = discover(PAIRS, [declared((0,), (1,), (2,), (3,))]).contradictions
    assert said == "1 devices a node declared (torchrun: 4 groups of 1), 2 measured (2 groups of 2)"
    (said,) = discover(PAIRS, [declared((0, 2), (1, 3), nodes=False, source="NUMA")]).contradictions
    assert said == "NUMA declares 2 groups of 2 that cut through the measured 2 groups of 2"


def test_a_tier_that_not_all_streams_show_is_left_out_and_told():
    once = replace(PAIRS, again=np.where(PAIRS.bandwidth == 8e9, 2.2e9, PAIRS.bandwidth))
    found = discover(once, [])
    assert [tier.groups for tier in found.tiers] == [((0, 1, 2, 3),)]
    (said,) = found.contradictions
    assert said.startswith("not enough evidence for 2 groups of 2")


def test_parts_that_make_no_difference_contradict_nothing():
    assert discover(PAIRS, [declared((0, 1), (2,), (3,), nodes=False)]).contradictions == ()


def test_a_declared_node_names_the_tier():
    three = measured_of([(0, 1, 2, 3), (4, 5, 6, 7)], ranks=8)
    for pair in ((0, 1), (2, 3), (4, 5), (6, 7)):
        three.bandwidth[pair] = three.bandwidth[pair[::-1]] = 16e9
    falls_most = discover(three, [])
    assert falls_most.names == ("inside_node_0", "intra_node", "cross_node")
    pairs = discover(three, [declared((0, 1), (2, 3), (4, 5), (6, 7))])
    assert pairs.names == ("intra_node", "between_nodes_1", "cross_node")
    topology = topology_of(pairs, three, facts("aabbccdd"), {})
    assert topology.shape == "4x2"
    assert [tier.groups for tier in topology.tiers] == [((0, 1, 2, 3), (4, 5, 6, 7))]


def test_a_bad_link_is_named_and_makes_a_matrix():
    bad = measured_of([(0, 1, 2), (3, 4, 5)], ranks=6)
    bad.bandwidth[1, 4] = 5e8
    found = discover(bad, [])
    (said,) = found.contradictions
    assert said == "the link from rank 1 to rank 4 has 25% of what its kind has (0.5 of 2 GB/s)"
    topology = topology_of(found, bad, facts("aaabbb"), {})
    assert topology.bandwidth[1][4] == 5e8
    assert topology.bandwidth[4][1] == 2e9


def test_ranks_out_of_order_are_told_and_put_in_order():
    apart = measured_of([(0, 2), (1, 3)])
    found = discover(apart, [])
    assert found.order == (0, 2, 1, 3)
    assert "not node by node" in found.contradictions[0]
    topology = topology_of(found, apart, facts("abab"), {})
    assert [device.name for node in topology.nodes for device in node.devices] == ["rank0", "rank2", "rank1", "rank3"]


def test_equal_links_are_one_node():
    alike = measured_of([], across=2e9)
    found = discover(alike, [declared((0, 1), (2, 3))])
    assert topology_of(found, alike, facts("aabb"), {}).shape == "1x4"
    assert found.contradictions == ("2 devices a node declared (torchrun: 2 groups of 2), 4 measured (1 group of 4)",)


@pytest.mark.parametrize("most", [3, 10**6])
def test_rounds_have_every_pair_once_and_no_machine_twice(most):
    machines = [f"m{rank // 3}" for rank in range(12)]
    pairs = pairs_to_measure(machines, most)
    rounds = rounds_of(pairs, machines)
    assert sorted(pair for together in rounds for pair in together) == sorted(set(pairs))
    for together in rounds:
        busy = [machine for pair in together for machine in {machines[rank] for rank in pair}]
        assert len(busy) == len(set(busy))
    values = {pair: 1.0 for i, j in pairs for pair in ((i, j), (j, i))}
    assert np.isnan(filled(values, machines)).sum() == len(machines)  # the diagonal alone
