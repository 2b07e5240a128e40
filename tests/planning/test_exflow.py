from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_moe.errors import UsageError
from grace_moe.planning import plan
from grace_moe.planning.baselines.exflow import crossings, fewest_crossings
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace, synthetic_trace

TOPOLOGY = Topology.regular(2, 2)


def chained(ids) -> RoutingTrace:
    """`[tokens][layers][k]`."""
    ids = np.array(ids, dtype=np.int16)
    return RoutingTrace(topk_ids=ids, num_experts=8, layer_ids=tuple(range(ids.shape[1])))


def devices(placement) -> np.ndarray:
    return np.array([[d for (d,) in layer.devices_of_expert] for layer in placement.layers])


def test_crossings_by_hand():
    """Expert 0 -> 0 stays with 3 tokens; 1 -> 0 crosses with 5; then 0 -> 1 stays with 2."""
    flows = [np.array([[3, 0], [5, 0]]), np.array([[0, 2], [0, 0]])]
    assert crossings(flows, [np.array([0, 1]), np.array([0, 1]), np.array([1, 0])]) == 5


def test_chains_of_experts_share_a_device():
    """Expert e is followed by e * 3 mod 8, with two tokens each: eight chains, nothing needs to cross."""
    placement = plan(chained([[[e], [e * 3 % 8], [e * 9 % 8]] for e in range(8)] * 2), TOPOLOGY, "exflow")
    placed = devices(placement)
    assert placed[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    for e in range(8):
        assert placed[0, e] == placed[1, e * 3 % 8] == placed[2, e * 9 % 8]
    assert (placement.slots_per_device() == 2).all()


def test_a_crossing_between_nodes_is_the_dearer():
    """0 -> {0, 1} and 1 -> {0, 1} often, so all four on one node; devices hold two experts, so that something crosses inside."""
    tokens = [[[0, 1], [0, 1]], [[2, 3], [2, 3]], [[4, 5], [4, 5]], [[6, 7], [6, 7]], [[0, 2], [0, 2]], [[4, 6], [4, 6]]]
    placed = devices(plan(chained(tokens * 3), TOPOLOGY, "exflow"))
    nodes = TOPOLOGY.node_of_device[placed]
    assert (nodes[:, :4] == nodes[0, 0]).all()
    assert (nodes[:, 4:] == 1 - nodes[0, 0]).all()


def test_top1_sees_the_first_expert_only():
    """By first experts 0 -> 1 and 1 -> 0; all others, and the second ones, say the opposite."""
    trace = chained([[[0, 2], [1, 2]], [[1, 3], [0, 3]]] * 4)
    placed = devices(plan(trace, Topology.regular(1, 8), "exflow", view="top1"))
    assert (placed[0, 0], placed[0, 1]) == (placed[1, 1], placed[1, 0])


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1))
def test_two_layers_are_exact(seed):
    """With layer 0 in its blocks, layer 1 is an assignment; the sweeps then only lower it."""
    generator = np.random.default_rng(seed)
    flow = generator.integers(0, 9, (4, 4))
    blocks = np.array([0, 0, 1, 1])
    best_from_blocks = min(crossings([flow], [blocks, blocks[list(p)]]) for p in permutations(range(4)))
    parts = fewest_crossings([flow], [2, 2], generator, starts=1)
    assert crossings([flow], parts) <= best_from_blocks
    assert all(sorted(part) == [0, 0, 1, 1] for part in parts)
    # No exchange of two experts in one layer helps: each layer is the best there is beside the other.
    for layer in range(2):
        for p in permutations(range(4)):
            other = [part.copy() for part in parts]
            other[layer] = blocks[list(p)]
            assert crossings([flow], other) >= crossings([flow], parts)


@settings(max_examples=40)
@given(
    tokens=st.integers(1, 60),
    layers=st.integers(1, 4),
    experts=st.integers(1, 20),
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    view=st.sampled_from(["pairs", "top1"]),
)
def test_every_expert_once_and_counts_alike_in_every_layer(tokens, layers, experts, sizes, view):
    trace = synthetic_trace(tokens=tokens, layers=layers, experts=experts, top_k=min(3, experts))
    topology = Topology.from_dict({"nodes": [{"devices": [{}] * n} for n in sizes]})
    placement = plan(trace, topology, "exflow", view=view, seed=1)
    slots = placement.slots_per_device()
    assert slots.max() - slots.min() <= 1
    assert (slots == slots[0]).all()
    assert slots.sum() == layers * experts
    assert plan(trace, topology, "exflow", view=view, seed=1) == placement


def test_more_starts_are_never_worse():
    generator = np.random.default_rng(0)
    flows = [generator.integers(0, 50, (16, 16)) for _ in range(5)]
    counts = [4, 4, 4, 4]
    found = [crossings(flows, fewest_crossings(flows, counts, np.random.default_rng(3), starts=n)) for n in (1, 2, 8)]
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"view": "all"}, "view 'all' is unknown; use one of pairs, top1"),
        ({"starts": 0}, "starts 0 is out of range; use a whole number from 1 to 1000"),
        ({"starts": 1.5}, "starts 1.5 is out of range"),
        ({"starts": [2]}, r"starts \[2\] is out of range"),
    ],
)
def test_errors_name_the_mend(options, message):
    with pytest.raises(UsageError, match=message):
        plan(synthetic_trace(tokens=20), TOPOLOGY, "exflow", **options)
