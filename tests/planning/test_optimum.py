"""How near the node search comes to the optimum, where the optimum can be had: integer programming (HiGHS) on small cases."""

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from grace_moe.planning.grace.schedule import LONG
from grace_moe.planning.grace.search.nodes import NodeRoom, SearchOptions, search_nodes, seed_copies

TRAFFIC_ONLY = SearchOptions(proposals=LONG.proposals // 5, price=0.0, doubt=0.0, copy_price=0.0)


def traffic(ids, counts, copies):
    """Copies summed over tokens and sources, by trying every set of nodes."""
    nodes = len(copies)
    hosts = ((copies > 0) << np.arange(nodes)[:, None]).sum(axis=0)
    total = 0
    for row, count in zip(ids, counts, strict=True):
        serving = [s for s in range(1 << nodes) if all(hosts[e] & s for e in row)]
        for source in range(nodes):
            total += count * (min(s.bit_count() for s in serving if s >> source & 1) - 1)
    return total


def optimum(ids, counts, experts, nodes, slots):
    """Least traffic with `slots` a node: x[n, e] = node n holds e; y[t, s, n] = the token visits n from source s."""
    x = np.arange(nodes * experts).reshape(nodes, experts)
    y = x.size + np.arange(len(ids) * nodes * nodes).reshape(len(ids), nodes, nodes)
    z, rows, low, high = x.size + y.size, [], [], []

    def constrain(terms, least, most):
        rows.append(terms)
        low.append(least)
        high.append(most)

    for e in range(experts):
        constrain([(v, 1) for v in x[:, e]], 1, nodes)
    for n in range(nodes):
        constrain([(v, 1) for v in x[n]], 0, slots)
    for t, row in enumerate(ids):
        for s in range(nodes):
            constrain([(y[t, s, s], 1)], 1, 1)
            for e in row:
                served = []
                for n in range(nodes):  # z <= x, z <= y
                    constrain([(z, 1), (x[n, e], -1)], -np.inf, 0)
                    constrain([(z, 1), (y[t, s, n], -1)], -np.inf, 0)
                    served.append((z, 1))
                    z += 1
                constrain(served, 1, np.inf)
    matrix = sparse.lil_array((len(rows), z))
    for r, terms in enumerate(rows):
        for column, value in terms:
            matrix[r, column] = value
    cost = np.zeros(z)
    cost[y] = np.asarray(counts)[:, None, None]
    whole = (np.arange(z) < x.size).astype(int)  # with x whole, a visit is worth having whole
    whole[y] = 1
    found = milp(cost, constraints=LinearConstraint(matrix.tocsr(), low, high), integrality=whole, bounds=Bounds(0, 1))
    assert found.status == 0
    return round(found.fun) - nodes * int(np.sum(counts))


@pytest.mark.parametrize("spare", [0, 1], ids=["no replicas", "a slot to spare on each node"])
def test_the_search_finds_the_optimum_of_small_cases(spare):
    """20 random cases of 8 to 10 experts, half of them with clusters: at least 95% exactly optimal, and none below."""
    reached = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)
        experts, nodes, k = int(generator.integers(8, 11)), 2, int(generator.integers(2, 4))
        tokens = []
        for _ in range(40):
            likes = np.ones(experts)
            if seed % 2:
                likes[np.arange(experts) % 2 == generator.integers(2)] = 6
            tokens.append(np.sort(generator.choice(experts, k, replace=False, p=likes / likes.sum())))
        ids, counts = np.unique(tokens, axis=0, return_counts=True)
        slots = -(-experts // nodes) + spare
        every = np.repeat(ids, counts, axis=0)
        share = np.bincount(every.ravel(), minlength=experts) / every.size
        room = NodeRoom(slots=np.full(nodes, slots), devices=np.ones(nodes, np.int64), capacity=np.full(nodes, 1 / nodes))
        found = search_nodes(every, share, np.zeros((experts, experts)), room, TRAFFIC_ONLY, seed, seed_copies(share, room))
        assert (found.sum(axis=0) >= 1).all()
        assert (found.sum(axis=1) <= slots).all()
        ours, best = traffic(ids, counts, found), optimum(ids, counts, experts, nodes, slots)
        assert ours >= best
        reached += ours == best
    assert reached >= 19
