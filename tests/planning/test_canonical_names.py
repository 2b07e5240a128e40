"""Planning knows experts by their tokens and devices by their speed: other names give the same plan by those names."""

from dataclasses import replace

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from grace_moe.placement import LayerPlacement, even_weights
from grace_moe.planning import plan
from grace_moe.planning.grace.canonical_names import CanonicalNames, device_order, expert_order, in_order, renamed
from grace_moe.topology import Topology
from grace_moe.trace import synthetic_trace

QUICK = {"effort": 0.02}


def test_experts_by_their_tokens_by_hand():
    """3 and 1 fire first, together; 3 fires again before 1 does; then 0; 2 never."""
    ids = np.array([[1, 3], [0, 3], [1, -1]])
    order = expert_order(ids, 4)
    assert order.tolist() == [3, 1, 0, 2]
    assert renamed(ids, order).tolist() == [[0, 1], [0, 2], [1, -1]]


def test_long_traces_are_read_in_parts():
    """Experts 0 and 1 fire together until the last token of 40,000, where 1 fires alone."""
    ids = np.tile([0, 1], (40_000, 1))
    ids[-1] = [1, -1]
    assert expert_order(ids, 3).tolist() == [1, 0, 2]


def test_devices_by_speed_by_hand():
    speeds = [[1.0, 2.0], [1.0], [3.0, 1.0, 3.0]]
    topology = Topology.from_dict({"nodes": [{"devices": [{"relative_speed": s} for s in node]} for node in speeds]})
    assert device_order(topology).tolist() == [1, 0, 2, 3, 5, 4]
    assert in_order(topology, device_order(topology)).relative_speed.tolist() == [2, 1, 1, 3, 3, 1]


def test_a_layer_there_and_back():
    devices = ((0, 3), (1,), (2, 0, 1))
    costs = ((0.0, 1.0), (1.0, 0.0), (0.5, 0.5))
    layer = LayerPlacement(layer_id=7, devices_of_expert=devices, replica_weights=even_weights(devices), source_costs=costs)
    labels = CanonicalNames(experts=np.array([2, 0, 1]), devices=np.array([1, 0, 2, 3]))
    canonical = labels.canonical(layer)
    assert canonical.devices_of_expert == ((0, 1, 2), (1, 3), (0,))
    assert canonical.source_costs == (costs[2], costs[0], costs[1])
    back = labels.original(canonical)
    assert [sorted(d) for d in back.devices_of_expert] == [sorted(d) for d in devices]
    assert back.source_costs == costs


def relabelled(trace, names, shuffle):
    """The trace with expert e of layer l called `names[l][e]`, each token's choices in another order."""
    ids = np.stack([names[layer][trace.topk_ids[:, layer]] for layer in range(trace.num_layers)], axis=1)
    order = np.argsort(shuffle.random(ids.shape), axis=2)
    return replace(trace, topk_ids=np.take_along_axis(ids, order, axis=2).astype(np.int16))


@st.composite
def cases(draw):
    seed = draw(st.integers(0, 2**32 - 1))
    trace = synthetic_trace(
        tokens=draw(st.sampled_from([300, 700])),
        layers=2,
        experts=draw(st.sampled_from([8, 12])),
        top_k=draw(st.integers(1, 3)),
        affinity=draw(st.sampled_from([0.0, 0.9])),
        skew=draw(st.sampled_from([0.0, 0.6, 1.5])),
        requests=20,
        seed=seed,
    )
    return trace, np.random.default_rng(seed)


def same_by_other_names(before, after, names, device=None):
    for index, (one, other) in enumerate(zip(before.layers, after.layers, strict=True)):
        for expert, name in enumerate(names[index]):
            moved = one.devices_of_expert[expert] if device is None else tuple(int(device[d]) for d in one.devices_of_expert[expert])
            assert other.devices_of_expert[name] == moved
            assert other.replica_weights[name] == one.replica_weights[expert]
            assert other.source_costs[name] == one.source_costs[expert]
        assert other.node_prices == one.node_prices
        assert other.replica_choice == one.replica_choice


@settings(max_examples=6)
@given(
    case=cases(),
    shape=st.sampled_from(["2x2", "4x1", "3x2"]),
    options=st.sampled_from([{}, {"request_placement": True}, {"slots_per_device": 6}]),
)
def test_other_names_of_experts_give_the_same_plan_by_those_names(case, shape, options):
    trace, generator = case
    loads = [np.bincount(trace.topk_ids[:, layer].ravel(), minlength=trace.num_experts) for layer in range(2)]
    names = [generator.permutation(trace.num_experts) for _ in range(2)]
    for load, name in zip(loads, names, strict=True):  # those that never fire are the same to a plan: they keep their order
        never = np.flatnonzero(load == 0)
        name[never] = np.sort(name[never])
    other = relabelled(trace, names, generator)
    before, after = (plan(t, Topology.parse(shape), "grace", **options, **QUICK) for t in (trace, other))
    same_by_other_names(before, after, names)


@settings(max_examples=6)
@given(case=cases())
def test_planning_again_does_not_know_names_either(case):
    trace, generator = case
    first, second = trace.split_requests()
    names = [generator.permutation(trace.num_experts) for _ in range(2)]
    topology = Topology.parse("2x2")
    start = plan(first, topology, "eplb")
    back = [np.argsort(name) for name in names]
    other_start = replace(
        start,
        layers=tuple(
            replace(
                layer,
                devices_of_expert=tuple(layer.devices_of_expert[e] for e in order),
                replica_weights=tuple(layer.replica_weights[e] for e in order),
            )
            for layer, order in zip(start.layers, back, strict=True)
        ),
    )
    loads = [np.bincount(second.topk_ids[:, layer].ravel(), minlength=trace.num_experts) for layer in range(2)]
    assume(all((load == 0).sum() <= 1 for load in loads))  # experts that never fire are told apart by number only
    before = plan(second, topology, "grace", start=start, **QUICK)
    after = plan(relabelled(second, names, generator), topology, "grace", start=other_start, **QUICK)
    same_by_other_names(before, after, names)


@settings(max_examples=8)
@given(case=cases(), orders=st.tuples(st.permutations(range(3)), st.permutations(range(2))))
def test_other_names_of_a_nodes_devices_permute_the_plan(case, orders):
    trace, _ = case
    speeds = [[1.0, 2.0, 0.5], [1.5, 1.0]]

    def topology(nodes):
        return Topology.from_dict({"nodes": [{"devices": [{"relative_speed": s} for s in node]} for node in nodes]})

    before = plan(trace, topology(speeds), "grace", **QUICK)
    after = plan(trace, topology([[node[d] for d in order] for node, order in zip(speeds, orders, strict=True)]), "grace", **QUICK)
    new_number = np.concatenate([np.argsort(orders[0]), 3 + np.argsort(orders[1])])
    same_by_other_names(before, after, [np.arange(trace.num_experts)] * 2, new_number)


def test_on_a_bigger_trace():
    trace = synthetic_trace(tokens=4000, layers=2, experts=32, top_k=4, affinity=0.9, skew=0.8, requests=80, seed=5)
    generator = np.random.default_rng(0)
    names = [generator.permutation(32) for _ in range(2)]
    before, after = (plan(t, Topology.parse("4x2"), "grace", effort=0.1) for t in (trace, relabelled(trace, names, generator)))
    same_by_other_names(before, after, names)
