"""Joint replica choice: the fewest nodes, every pair on a replica, shares by weight."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_moe.choice import choice_table
from grace_moe.placement import LayerPlacement, even_weights
from grace_moe.topology import Topology


def layer_of(*devices_of_expert):
    return LayerPlacement(layer_id=0, devices_of_expert=devices_of_expert, replica_weights=even_weights(devices_of_expert))


def test_a_node_that_is_visited_anyway_is_free():
    """2x2. Expert 0 is on node 1 only, expert 1 on both nodes, expert 2 on node 0 only; the source is device 0.

    Experts 0 and 2 make the token visit both nodes; expert 1 may then be on either. With 1 and 2 alone it stays at home.
    """
    table = choice_table(layer_of((2,), (1, 3), (0,)), Topology.parse("2x2"), "joint")
    ids = np.array([[0, 1, 2], [1, 2, -1]])
    chosen = table.choose(0, ids, np.array([0, 0]), np.array([5, 6]), seed=1)
    assert chosen[0, 0] == 2
    assert chosen[0, 1] in (1, 3)
    assert chosen[0, 2] == 0
    assert chosen[1].tolist() == [1, 0, -1]


def test_shares_follow_the_weights_on_the_visited_nodes():
    layer = LayerPlacement(layer_id=0, devices_of_expert=((0, 1, 2),), replica_weights=((0.6, 0.2, 0.2),))
    table = choice_table(layer, Topology.parse("2x2"), "joint")
    tokens = np.arange(20_000)
    chosen = table.choose(0, np.zeros((20_000, 1), dtype=np.int64), np.zeros(20_000, dtype=np.int64), tokens, seed=0)
    assert np.bincount(chosen.ravel(), minlength=4) / 20_000 == pytest.approx([0.75, 0.25, 0, 0], abs=0.02)


def test_a_replica_on_a_node_that_is_not_visited_is_never_drawn():
    """Expert 0 is on node 1, named first, and on node 0, where all tokens are: even the lowest of many draws stays there."""
    table = choice_table(layer_of((2, 0)), Topology.parse("2x2"), "joint")
    tokens = np.arange(200_000)
    assert not table.choose(0, np.zeros((200_000, 1), np.int64), tokens * 0, tokens, seed=0).any()


@st.composite
def cases(draw, nodes):
    experts = draw(st.integers(2, 10))
    devices = st.sets(st.integers(0, 2 * nodes - 1), min_size=1, max_size=3)
    hosts = tuple(tuple(sorted(draw(devices))) for _ in range(experts))
    k = draw(st.integers(1, min(4, experts)))
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    ids = np.stack([generator.permutation(experts)[:k] for _ in range(8)])
    ids[generator.random(ids.shape) < 0.1] = -1
    return layer_of(*hosts), ids, generator.integers(0, 2 * nodes, 8), seed


def fewest_other_nodes(layer, ids, source_node, num_nodes):
    """By trying every set of other nodes, smallest first."""
    others = [n for n in range(num_nodes) if n != source_node]
    for size in range(num_nodes):
        for chosen in combinations(others, size):
            nodes = {source_node, *chosen}
            if all(any(d // 2 in nodes for d in layer.devices_of_expert[e]) for e in ids if e >= 0):
                return size
    raise AssertionError


@settings(max_examples=60)
@given(case=cases(4))
def test_visits_the_fewest_nodes(case):
    layer, ids, sources, seed = case
    chosen = choice_table(layer, Topology.parse("4x2"), "joint").choose(0, ids, sources, np.arange(8), seed=seed)
    for row, devices, source in zip(ids, chosen, sources, strict=True):
        assert all((d == -1) if e < 0 else d in layer.devices_of_expert[e] for e, d in zip(row, devices, strict=True))
        visited = {d // 2 for d in devices if d >= 0} - {source // 2}
        assert len(visited) <= fewest_other_nodes(layer, row, source // 2, 4)


@settings(max_examples=40)
@given(case=cases(9))
def test_many_nodes_are_covered_greedily(case):
    """Nine nodes are beyond the exact limit: every pair is still on a replica, and few nodes are visited."""
    layer, ids, sources, seed = case
    chosen = choice_table(layer, Topology.parse("9x2"), "joint").choose(0, ids, sources, np.arange(8), seed=seed)
    for row, devices, source in zip(ids, chosen, sources, strict=True):
        assert all((d == -1) if e < 0 else d in layer.devices_of_expert[e] for e, d in zip(row, devices, strict=True))
        visited = {d // 2 for d in devices if d >= 0} - {source // 2}
        # Greedy cover of k <= 4 experts visits at most H(4) = 2.08 times the fewest.
        assert len(visited) <= 2.09 * fewest_other_nodes(layer, row, source // 2, 9)


def test_prices_steer_ties_and_nothing_else():
    """Expert 0 on node 0, expert 1 on nodes 1 and 2, source on node 0: two sets of two nodes serve the token."""
    devices = ((0,), (1, 2))
    tokens = np.arange(4000)
    ids = np.tile([0, 1], (4000, 1))

    def share_of_node_1(prices):
        layer = LayerPlacement(layer_id=0, devices_of_expert=devices, replica_weights=even_weights(devices), node_prices=prices)
        return float((choice_table(layer, Topology.parse("3x1"), "joint").choose(0, ids, tokens * 0, tokens, seed=2)[:, 1] == 1).mean())

    assert share_of_node_1(()) == pytest.approx(0.5, abs=0.03)
    assert share_of_node_1((5, 0.3, 0.3)) == share_of_node_1(())  # the source is visited whatever its price
    # Uniform hashes u1 + 0.5 < u2: half of 0.5 squared.
    assert share_of_node_1((0, 0.5, 0)) == pytest.approx(0.125, abs=0.03)
    assert share_of_node_1((0, 15, 0)) == 0
    # A dear node is still better than one node more.
    alone = LayerPlacement(
        layer_id=0, devices_of_expert=((1,), (2,), (1, 2)), replica_weights=((1.0,), (1.0,), (0.5, 0.5)), node_prices=(0, 15, 15)
    )
    table = choice_table(alone, Topology.parse("3x1"), "joint")
    assert table.choose(0, np.array([[0, 2]]), np.array([0]), np.array([0]), seed=0).tolist() == [[1, 1]]


def test_a_layers_own_choice_overrules_the_placements():
    layer = LayerPlacement(layer_id=0, devices_of_expert=((0, 2),), replica_weights=((0.5, 0.5),), replica_choice="wrr")
    ids = np.zeros((1000, 1), np.int64)
    away = choice_table(layer, Topology.parse("2x2"), "joint").choose(0, ids, ids[:, 0], np.arange(1000), seed=0)
    assert (away == 2).mean() == pytest.approx(0.5, abs=0.05)
