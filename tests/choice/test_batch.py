"""LPLB and METRO: whole batches by hand, against brute force, and what every policy must keep."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.sparse.csgraph import maximum_bipartite_matching

from grace_moe.choice import BATCH_POLICIES, batch_policy
from grace_moe.choice.batch import deal
from grace_moe.choice.lplb import least_maximum, lplb, round_shares
from grace_moe.choice.metro import metro
from grace_moe.errors import UsageError
from grace_moe.placement import LayerPlacement, even_weights
from grace_moe.topology import Topology


def layer_of(*hosts) -> LayerPlacement:
    rows = tuple(tuple(devices) for devices in hosts)
    return LayerPlacement(layer_id=0, devices_of_expert=rows, replica_weights=even_weights(rows))


def topology_of(speeds) -> Topology:
    return Topology.from_dict({"nodes": [{"devices": [{"relative_speed": s} for s in speeds]}]})


def ask(policy, layer, topology, ids, **options):
    ids = np.array(ids, dtype=np.int64)
    return policy(layer, topology, ids, np.zeros(len(ids), dtype=np.int64), **options).tolist()


def test_tokens_are_dealt_in_order():
    """Expert 1 is chosen by tokens 0, 1 and 3: two to device 5, one to device 7."""
    ids = np.array([[1, 0], [-1, 1], [0, -1], [1, 0]])
    got = deal(ids, np.array([0, 1, 1]), np.array([4, 5, 7]), np.array([3, 2, 1]))
    assert got.tolist() == [[5, 4], [-1, 5], [4, -1], [7, 4]]


def test_lplb_fills_the_idle_device():
    """Expert 0 (on 0 and 1) is chosen six times, expert 1 (on 0 only) twice: 4 + 4, so four of the six on device 1."""
    ids = [[0, 1]] * 2 + [[0, -1]] * 4
    got = np.array(ask(lplb, layer_of([0, 1], [0]), topology_of([1, 1]), ids))
    assert got[:, 1].tolist() == [0, 0, -1, -1, -1, -1]
    assert got[:, 0].tolist() == [0, 0, 1, 1, 1, 1]


def test_lplb_gives_a_fast_device_more():
    """Speeds 3 and 1, eight tokens: six and two."""
    got = ask(lplb, layer_of([0, 1]), topology_of([3, 1]), [[0]] * 8)
    assert sum(d == [0] for d in got) == 6


def test_shares_become_whole_tokens():
    """7 = 2.5 + 2.5 + 2 and 3 = 1.2 + 1.8: largest remainders up, the first replica where they are alike."""
    got = round_shares(np.array([7, 3, 0]), np.array([0, 0, 0, 1, 1, 2]), np.array([2.5, 2.5, 2.0, 1.2, 1.8, 0.0]))
    assert got.tolist() == [3, 2, 2, 1, 2, 0]


def whole_shares(load, replicas):
    """Every way to share so many tokens out."""
    return [counts for counts in product(range(load + 1), repeat=replicas) if sum(counts) == load]


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_whole_sharing_is_below_the_programs_maximum(seed):
    generator = np.random.default_rng(seed)
    hosts = [generator.permutation(3)[: generator.integers(1, 4)] for _ in range(3)]
    loads, speed = generator.integers(0, 5, 3), generator.choice([0.5, 1.0, 2.0], 3)
    experts, devices = np.repeat(np.arange(3), [len(h) for h in hosts]), np.concatenate(hosts)
    shares = least_maximum(loads, experts, devices, speed)
    assert np.bincount(experts, weights=shares, minlength=3) == pytest.approx(loads)
    least = (np.bincount(devices, weights=shares, minlength=3) / speed).max()
    for parts in product(*[whole_shares(load, len(own)) for load, own in zip(loads, hosts, strict=True)]):
        counts = [count for part in parts for count in part]
        assert (np.bincount(devices, weights=counts, minlength=3) / speed).max() >= least - 1e-9
    # Rounding adds less than a token a replica.
    whole = round_shares(loads, experts, shares)
    assert np.bincount(experts, weights=whole, minlength=3).tolist() == loads.tolist()
    assert (abs(whole - shares) < 1 + 1e-6).all()


def test_metro_keeps_an_expert_whole():
    """Expert 2 is on device 0 only and chooses first; expert 0 then finds device 1 empty, expert 1 the two alike: its first host."""
    layer, topology = layer_of([0, 1], [1, 0], [0]), topology_of([1, 1])
    assert ask(metro, layer, topology, [[0, 1], [2, 0], [-1, 0]]) == [[1, 1], [0, 1], [-1, 1]]


def test_metro_does_not_count_experts_that_are_not_active():
    """Expert 1 is nobody's choice: expert 0 stays on its first host."""
    assert ask(metro, layer_of([0, 1], [0]), topology_of([1, 1]), [[0], [0]]) == [[0], [0]]


def test_the_greedy_is_near_the_optimum():
    """The paper: at most 10.9% from it."""
    generator = np.random.default_rng(0)
    greedy, best = 0, 0
    for _ in range(60):
        hosts = [tuple(generator.permutation(8)[: generator.integers(1, 4)].tolist()) for _ in range(64)]
        ids = np.flatnonzero(generator.random(64) < 0.7)[None, :]
        chosen = metro(layer_of(*hosts), Topology.regular(2, 4), ids, np.zeros(1, np.int64))[0]
        least = least_active([hosts[e] for e in ids[0]], 8)
        assert np.bincount(chosen).max() >= least
        greedy, best = greedy + np.bincount(chosen).max(), best + least
    assert greedy <= 1.109 * best


def least_active(hosts, num_devices):
    """The least possible maximum of active experts on a device: the smallest room that a matching fills."""
    for room in range(-(-len(hosts) // num_devices), len(hosts) + 1):
        columns = [device * room + slot for devices in hosts for device in devices for slot in range(room)]
        rows = np.repeat(np.arange(len(hosts)), [len(devices) * room for devices in hosts])
        graph = sparse.csr_array((np.ones(len(columns), dtype=np.int8), (rows, columns)), shape=(len(hosts), num_devices * room))
        if (maximum_bipartite_matching(graph, perm_type="column") >= 0).all():
            return room
    return 0


@settings(max_examples=60)
@given(policy=st.sampled_from(BATCH_POLICIES), seed=st.integers(0, 2**32 - 1), tokens=st.integers(0, 12))
def test_every_pair_is_computed_where_its_expert_is(policy, seed, tokens):
    generator = np.random.default_rng(seed)
    devices = int(generator.integers(1, 5))
    hosts = [generator.permutation(devices)[: generator.integers(1, devices + 1)].tolist() for _ in range(6)]
    ids = np.array([generator.permutation(6)[:3] for _ in range(tokens)], dtype=np.int64).reshape(tokens, 3)
    ids[generator.random(ids.shape) < 0.2] = -1
    chosen = ask(batch_policy(policy), layer_of(*hosts), topology_of([1.0] * devices), ids)
    assert chosen == ask(batch_policy(policy), layer_of(*hosts), topology_of([1.0] * devices), ids)
    for row, places in zip(ids.tolist(), chosen, strict=True):
        assert all(place == -1 if expert < 0 else place in hosts[expert] for expert, place in zip(row, places, strict=True))


def test_an_unknown_policy():
    with pytest.raises(UsageError, match="policy 'best' is unknown; use one of lplb, metro"):
        batch_policy("best")
