import numpy as np
import pytest

from grace_moe.errors import UsageError
from grace_moe.planning import plan
from grace_moe.planning.baselines.biased import biased_devices
from grace_moe.planning.baselines.c2r import c2r_groups
from grace_moe.planning.baselines.cooccurrence import cooccurrence_groups
from grace_moe.planning.baselines.occult import occult_groups
from grace_moe.planning.groups.contiguous import contiguous_groups
from grace_moe.topology import Topology
from grace_moe.trace import synthetic_trace

TRACE = synthetic_trace(tokens=400, layers=2, experts=10, top_k=2, clusters=2)


def symmetric(num_experts: int, pairs: dict[tuple[int, int], int]) -> np.ndarray:
    affinity = np.zeros((num_experts, num_experts), dtype=np.int64)
    for (i, j), weight in pairs.items():
        affinity[i, j] = affinity[j, i] = weight
    return affinity


def devices(placement):
    return [d for (d,) in placement.layers[0].devices_of_expert]


def test_linear_where_devices_divide_the_experts():
    trace = synthetic_trace(tokens=10, experts=8, top_k=2)
    assert devices(plan(trace, Topology.regular(2, 2), "linear")) == [e * 4 // 8 for e in range(8)]


def test_linear_gives_the_first_devices_one_more():
    assert contiguous_groups(10, 4) == ((0, 1, 2), (3, 4, 5), (6, 7), (8, 9))
    assert devices(plan(TRACE, Topology.regular(2, 2), "linear")) == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3]


def test_linear_with_more_devices_than_experts_leaves_some_empty():
    placement = plan(TRACE, Topology.regular(4, 4), "linear")
    assert devices(placement) == list(range(10))


def test_round_robin_deals_out():
    assert devices(plan(TRACE, Topology.regular(2, 2), "round_robin")) == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]


# 0-1 strongly, 2-3 strongly, 0-2 a little, 4 with 2 most, 5 with 0.
CHAIN = symmetric(6, {(0, 1): 9, (2, 3): 7, (0, 2): 2, (2, 4): 3, (0, 5): 1})


def test_occult_fills_one_device_after_another():
    # First seed: expert 0 (degree 12; 2 has 12 too). It takes 1 (9), then 2 (2). Farthest from those: 5 (1) over 3 (7) and 4 (3).
    assert occult_groups(CHAIN, 2) == ((0, 1, 2), (3, 4, 5))


def test_occult_seed_rules_differ():
    # After {0, 1}: farthest takes 3 or 4 (0 to placed) -> 3, with 2; degree takes 2, with 3. Then farthest: 4, 5 either way.
    assert occult_groups(CHAIN, 3, seed_rule="farthest") == ((0, 1), (2, 3), (4, 5))
    # Four devices of 2, 2, 1, 1 experts: the third seed is 4 (degree 3) by degree, 5 (1 < 3 to placed) by farthest.
    assert occult_groups(CHAIN, 4, seed_rule="degree")[2:] == ((4,), (5,))
    assert occult_groups(CHAIN, 4, seed_rule="farthest")[2:] == ((5,), (4,))


def test_c2r_takes_the_openers_own_collaborators():
    # 0 opens (heaviest) and takes 1 (9) and 2 (2); the rest is left for the second device.
    assert c2r_groups(CHAIN, np.array([9, 8, 7, 6, 5, 4]), 2) == ((0, 1, 2), (3, 4, 5))
    # 2 opens: 3 (7) and 4 (3); then 0 with the rest.
    assert c2r_groups(CHAIN, np.array([8, 7, 9, 6, 5, 4]), 2) == ((2, 3, 4), (0, 1, 5))


def test_cooccurrence_stops_at_the_load_cap():
    loads = np.array([4, 4, 4, 4, 1, 1])
    # Mean load 9, alpha 0.9: cap 8.1 and 2.7 slots. Device 0: 0, then 1 (9, load 8). Device 1: 2, then 3.
    # Then 4 and 5, to the lightest with room: 0, then 1.
    assert cooccurrence_groups(CHAIN, loads, 2, alpha=0.9) == ((0, 1, 4), (2, 3, 5))
    # alpha 0.5: cap 4.5 and 1.5 slots: an opener each; the rest by load.
    assert cooccurrence_groups(CHAIN, loads, 2, alpha=0.5) == ((0, 2, 4), (1, 3, 5))


def test_biased_puts_the_heaviest_everywhere():
    assert biased_devices(np.array([5, 9, 1, 8, 2, 3]), 2, 2) == [(0,), (0, 1), (0,), (1, 0), (1,), (1,)]
    assert biased_devices(np.array([5, 9]), 2, 0) == [(0,), (1,)]


def test_biased_spends_the_redundancy():
    trace = synthetic_trace(tokens=200, experts=16, top_k=2)
    topology = Topology.regular(2, 2)
    # 1.25 allows 4 slots more; an expert on all devices takes 3.
    assert plan(trace, topology, "biased").slots_total_over_experts == 19 / 16
    assert plan(trace, topology, "biased", redundancy=4.0).slots_total_over_experts == 4
    # 7 a device: 4 hot and 12 / 4.
    assert (plan(trace, topology, "biased", slots_per_device=7).slots_per_device() == 7).all()
    none = plan(trace, topology, "biased", redundancy=1.1)
    assert none.slots_total_over_experts == 1
    assert "no expert is replicated" in none.provenance["notes"][0]
    assert plan(trace, Topology.regular(1, 1), "biased").slots_total_over_experts == 1


@pytest.mark.parametrize("method", ["linear", "round_robin", "occult", "c2r", "cooccurrence", "moetuner", "exflow"])
def test_methods_without_replicas_say_so(method):
    topology = Topology.regular(2, 2)
    assert plan(TRACE, topology, method).provenance["notes"] == []
    assert plan(TRACE, topology, method, redundancy=1.0).provenance["notes"] == []
    notes = plan(TRACE, topology, method, redundancy=1.5).provenance["notes"]
    assert notes == [f"redundancy 1.5 has no effect: {method} makes no replicas"]
    placement = plan(TRACE, topology, method, slots_per_device=3)
    assert sorted(placement.slots_per_device()[0]) == [2, 2, 3, 3]


def test_values_out_of_range():
    with pytest.raises(UsageError, match=r"seed_rule 'first' is unknown; use one of farthest, degree"):
        plan(TRACE, Topology.regular(2, 2), "occult", seed_rule="first")
    with pytest.raises(UsageError, match=r"alpha 1.5 is out of range; use 0"):
        plan(TRACE, Topology.regular(2, 2), "cooccurrence", alpha=1.5)
    with pytest.raises(UsageError, match=r"alpha \[1\] is out of range"):
        plan(TRACE, Topology.regular(2, 2), "cooccurrence", alpha=[1])
    with pytest.raises(UsageError, match=r"num_groups \[2\] is not a whole number"):
        plan(TRACE, Topology.regular(2, 2), "eplb", num_groups=[2])
