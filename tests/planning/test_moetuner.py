from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_moe.errors import UsageError
from grace_moe.planning import plan
from grace_moe.planning.baselines import moetuner
from grace_moe.planning.baselines.moetuner import assign_clusters, balanced_clusters, deviation, greedy_clusters, ilp_clusters
from grace_moe.planning.groups.contiguous import even_sizes
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace, synthetic_trace

TOPOLOGY = Topology.regular(2, 2)
# LPT with three a cluster: 8 | 7, then 6 to 7's, 5 to 8's, 4 to 8's (13 each), 1 to 7's: 17 and 14. Best: 16 and 15.
LOADS = np.array([8, 7, 6, 5, 4, 1])


def least_deviation(loads, sizes) -> float:
    cluster = np.repeat(np.arange(len(sizes)), sizes)
    return min(deviation(loads, cluster[list(p)], len(sizes)) for p in permutations(range(len(loads))))


def test_swaps_mend_what_the_greedy_packs():
    assert least_deviation(LOADS, [3, 3]) == pytest.approx(1 / 31)
    cluster = greedy_clusters(LOADS, [3, 3])
    assert sorted(np.bincount(cluster, weights=LOADS)) == [15, 16]


def test_a_heavy_expert_has_fellows_all_the_same():
    """Without sizes (the paper as printed) the balance would be 10 alone against all the others."""
    cluster = greedy_clusters(np.array([10, 2, 2, 2, 2, 2]), [3, 3])
    assert sorted(np.bincount(cluster)) == [3, 3]


@settings(max_examples=25)
@given(loads=st.lists(st.integers(0, 30), min_size=1, max_size=7), clusters=st.integers(1, 4))
def test_the_ilp_is_the_optimum_of_all_partitions(loads, clusters):
    loads = np.array(loads)
    sizes = even_sizes(len(loads), clusters)
    best = least_deviation(loads, sizes)
    if loads.sum():
        solved = ilp_clusters(loads, sizes, 0.0)
        assert solved is not None
        assert np.bincount(solved, minlength=clusters).tolist() == sizes
        assert deviation(loads, solved, clusters) == pytest.approx(best, abs=1e-5)
    cluster, _ = balanced_clusters(loads, clusters, solver="ilp", tolerance=0.0)
    assert deviation(loads, cluster, clusters) == pytest.approx(best, abs=1e-5)


def test_the_ilp_is_asked_only_where_the_greedy_is_not_within_the_tolerance(monkeypatch):
    asked = []
    monkeypatch.setattr(moetuner, "ilp_clusters", lambda loads, sizes, tolerance: asked.append(tolerance))
    even, uneven = np.array([5, 5, 5, 5]), np.array([9, 1, 1, 1])
    assert balanced_clusters(even, 2, solver="ilp", tolerance=0.0)[1] == ()
    assert balanced_clusters(uneven, 2, solver="greedy", tolerance=0.0)[1] == ()
    assert balanced_clusters(uneven, 2, solver="auto", tolerance=0.9)[1] == ()
    assert asked == []
    assert balanced_clusters(uneven, 2, solver="auto", tolerance=0.1)[1] == (moetuner.UNSOLVED,)
    assert asked == [0.1]


def test_a_problem_too_big_is_greedy_and_says_so():
    trace = synthetic_trace(tokens=50, layers=2, experts=80, top_k=4, skew=1.0)
    placement = plan(trace, Topology.regular(4, 4), "moetuner")
    assert placement.provenance["notes"] == ["layers 0, 1: the balance ILP has over 1024 binaries: clusters are greedy"]


def test_clusters_go_where_their_tokens_come_from():
    """Clusters of two; each expert e of layer 0 is followed by 7 - e: cluster by cluster the way back, on the same device."""
    ids = np.array([[[e], [7 - e]] for e in range(8) for _ in range(8 - e)], dtype=np.int16)
    trace = RoutingTrace(topk_ids=ids, num_experts=8, layer_ids=(0, 1))
    first, second = ([d for (d,) in layer.devices_of_expert] for layer in plan(trace, TOPOLOGY, "moetuner").layers)
    assert second == first[::-1]


def test_sum_and_max_differ():
    """Rows are clusters, columns devices; one link each. Sum: 0 + 5 = 5, busiest 5. The other way: 3 + 3 = 6, busiest 3."""
    costs = np.array([[[0.0], [3.0]], [[3.0], [5.0]]])
    assert assign_clusters(costs, flow="sum").tolist() == [0, 1]
    assert assign_clusters(costs, flow="max").tolist() == [1, 0]


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 4), links=st.integers(1, 3))
def test_assignment_is_the_best_of_all(seed, n, links):
    costs = np.random.default_rng(seed).integers(0, 9, (n, n, links)).astype(float)

    def cost(device):
        chosen = costs[np.arange(n), list(device)]
        return chosen.sum(), (chosen.max(), chosen.sum())

    all_ways = [cost(p) for p in permutations(range(n))]
    assert cost(assign_clusters(costs, flow="sum"))[0] == min(way[0] for way in all_ways)
    assert cost(assign_clusters(costs, flow="max"))[1] == min(way[1] for way in all_ways)


@settings(max_examples=30)
@given(
    tokens=st.integers(1, 60),
    layers=st.integers(1, 3),
    experts=st.integers(1, 20),
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    options=st.sampled_from([{}, {"flow": "max"}, {"links": "bandwidth"}, {"solver": "greedy"}]),
)
def test_every_expert_once_and_equal_counts(tokens, layers, experts, sizes, options):
    trace = synthetic_trace(tokens=tokens, layers=layers, experts=experts, top_k=min(3, experts), skew=1.0)
    topology = Topology.from_dict({"nodes": [{"devices": [{}] * n} for n in sizes]})
    placement = plan(trace, topology, "moetuner", **options)
    slots = placement.slots_per_device()
    assert slots.max() - slots.min() <= 1
    assert slots.sum() == layers * experts
    assert plan(trace, topology, "moetuner", **options) == placement


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flow": "mean"}, "flow 'mean' is unknown; use one of sum, max"),
        ({"links": "rails"}, "links 'rails' is unknown; use one of hops, bandwidth"),
        ({"solver": "gurobi"}, "solver 'gurobi' is unknown; use one of auto, ilp, greedy"),
        ({"tolerance": -0.1}, r"tolerance -0.1 is out of range; use 0 \(the optimum\) to 1"),
        ({"tolerance": None}, "tolerance None is out of range"),
    ],
)
def test_errors_name_the_mend(options, message):
    with pytest.raises(UsageError, match=message):
        plan(synthetic_trace(tokens=20), TOPOLOGY, "moetuner", **options)
