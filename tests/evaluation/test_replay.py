"""Replay against plain loops, straight from the definitions; bytes and modelled time by hand."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_moe.errors import MismatchError, UsageError
from grace_moe.evaluation import compare, cross_node_bytes, evaluate, modelled_layer_time
from grace_moe.placement import LayerPlacement, Placement, even_weights
from grace_moe.planning import choice_tables, plan
from grace_moe.topology import Device, Link, Node, Topology
from grace_moe.trace import RoutingTrace, synthetic_trace
from grace_moe.wire import WireFormat


def trace_of(ids, experts, **more):
    ids = np.array(ids, dtype=np.int16)[:, None, :]
    return RoutingTrace(topk_ids=ids, num_experts=experts, layer_ids=(0,), **more)


def placement_of(topology, devices, choice="tar"):
    layer = LayerPlacement(layer_id=0, devices_of_expert=devices, replica_weights=even_weights(devices))
    return Placement(topology=topology, num_experts=len(devices), layers=(layer,), replica_choice=choice)


def test_by_hand():
    """2x2, expert e on device e; tokens from devices 0, 1, 2, 3.

    token 0 from 0 to {1, 2}: node 1 once. Inside: 0 -> 1; on node 1 the ingress device is 2, which hosts it.
    token 1 from 1 to {2, 3}: node 1 once. Ingress 3 hosts expert 3, and forwards to 2.
    token 2 from 2 to {2, 3}: stays. Inside: 2 -> 3.
    token 3 from 3 to {0, -}: node 0 once. Ingress is 1, which forwards to 0.
    """
    trace = trace_of([[1, 2], [2, 3], [2, 3], [0, -1]], 4)
    result = evaluate(placement_of(Topology.parse("2x2"), ((0,), (1,), (2,), (3,))), trace)
    assert result.cross_node.tolist() == [3]
    assert result.intra_node.tolist() == [1 + 1 + 1 + 1]
    assert result.flat.tolist() == [2 + 2 + 1 + 1]
    assert result.flat_cross_node.tolist() == [1 + 2 + 0 + 1]
    assert result.pairs.tolist() == [6]
    assert result.pairs_cross_node.tolist() == [4]
    assert result.device_load.tolist() == [[1, 1, 3, 2]]
    assert result.load_max_over_mean == pytest.approx(3 / 1.75)
    assert result.idle_fraction == pytest.approx(1 - 1.75 / 3)
    assert result.active_experts_max is None


def test_active_experts_count_a_decode_batch():
    """Two requests: a prefill token each, then two decode steps. Expert e on device e // 2."""
    trace = trace_of(
        [[0, 1], [2, 3], [0, 1], [1, 0], [0, 2], [0, 1]],
        4,
        request_ids=np.array([0, 1, 0, 1, 0, 1], np.int32),
        phase=np.array([0, 0, 1, 1, 1, 1], np.uint8),
    )
    result = evaluate(placement_of(Topology.parse("1x2"), ((0,), (0,), (1,), (1,))), trace)
    assert result.active_experts_max == 2.0  # step 0: {0, 1} on device 0; step 1: {0, 1} on device 0, {2} on device 1


@st.composite
def cases(draw):
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    speeds = st.sampled_from([1.0, 0.5, 2.0])
    nodes = tuple(
        Node(name=f"n{n}", devices=tuple(Device(name=f"d{d}", relative_speed=draw(speeds)) for d in range(size)))
        for n, size in enumerate(sizes)
    )
    link = Link(bandwidth_bytes_per_s=1e9, latency_s=0)
    topology = Topology(nodes=nodes, intra_node=link, cross_node=link)
    experts = draw(st.integers(2, 6))
    devices = tuple(
        tuple(draw(st.lists(st.integers(0, topology.num_devices - 1), min_size=1, max_size=3, unique=True))) for _ in range(experts)
    )
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    tokens, k = draw(st.integers(0, 12)), draw(st.integers(1, min(3, experts)))
    ids = np.array([generator.permutation(experts)[:k] for _ in range(tokens)], dtype=np.int64).reshape(tokens, k)
    ids[generator.random(ids.shape) < 0.15] = -1
    more = {}
    if draw(st.booleans()):
        more["request_ids"] = generator.integers(0, 5, tokens).astype(np.int32)
    if draw(st.booleans()):
        more["phase"] = generator.integers(0, 2, tokens).astype(np.uint8)
    return placement_of(topology, devices, draw(st.sampled_from(["tar", "wrr", "joint"]))), trace_of(ids, experts, **more)


@settings(max_examples=80, deadline=None)
@given(case=cases(), seed=st.integers(0, 99))
def test_agrees_with_plain_loops(case, seed):
    placement, trace = case
    topology = placement.topology
    node, devices = topology.node_of_device, topology.num_devices
    order = {r: i for i, r in enumerate(dict.fromkeys(trace.requests.tolist()))}
    source = [order[r] % devices for r in trace.requests.tolist()]
    ids = trace.topk_ids[:, 0].astype(np.int64)
    chosen = choice_tables(placement)[0].choose(0, ids, np.array(source, dtype=np.int64), np.arange(len(ids)), seed=seed)
    want, load, active = Counter(), np.zeros(devices), {}
    steps = Counter()
    for t, s in enumerate(source):
        hosts = {int(d) for d in chosen[t] if d >= 0}
        want["cross"] += len({node[d] for d in hosts} - {node[s]})
        want["flat"] += len(hosts - {s})
        want["flat_cross"] += sum(node[d] != node[s] for d in hosts)
        for n in {node[d] for d in hosts}:
            members = topology.devices_of_node(n)
            entry = s if n == node[s] else members[(s - topology.devices_of_node(node[s]).start) % len(members)]
            want["intra"] += len({d for d in hosts if node[d] == n} - {entry})
        for d in chosen[t]:
            if d >= 0:
                load[d] += 1
                want["pairs"] += d != s
                want["pairs_cross"] += node[d] != node[s]
        if trace.phase is not None and trace.phase[t] == 1:
            step = steps[trace.requests[t]]
            steps[trace.requests[t]] += 1
            for expert, d in zip(ids[t], chosen[t], strict=True):
                if d >= 0:
                    active.setdefault((step, int(d)), set()).add(int(expert))
    result = evaluate(placement, trace, seed=seed)
    got = {
        "cross": result.cross_node,
        "intra": result.intra_node,
        "flat": result.flat,
        "flat_cross": result.flat_cross_node,
        "pairs": result.pairs,
        "pairs_cross": result.pairs_cross_node,
    }
    assert {k: int(v[0]) for k, v in got.items()} == {k: int(want[k]) for k in got}
    np.testing.assert_allclose(result.device_load[0], load / topology.relative_speed)
    if trace.phase is None or not (trace.phase == 1).any():
        assert result.active_experts_max is None
    else:
        batches = max(steps.values())
        mean = np.mean([max([len(v) for (s, _), v in active.items() if s == b], default=0) for b in range(batches)])
        assert result.active_experts_max == pytest.approx(mean)


def test_bytes_by_hand():
    """The hand-worked case: 3 copies between nodes, 4 flat, 4 pairs; hidden 10 x 4 bytes, k = 2: rows of 52 and 40 bytes."""
    trace = trace_of([[1, 2], [2, 3], [2, 3], [0, -1]], 4)
    result = evaluate(placement_of(Topology.parse("2x2"), ((0,), (1,), (2,), (3,))), trace)
    wire = WireFormat(hidden_size=10, itemsize=4, top_k=2)
    assert cross_node_bytes(result, wire, "hierarchical", steps=2) == 3 * (52 + 40) + 2 * 4 * 8
    assert cross_node_bytes(result, wire, "flat", steps=1) == 4 * (52 + 40) + 8 * 8
    assert cross_node_bytes(result, wire, "vanilla", steps=1) == 4 * 2 * 40 + 8 * 1 * 8
    with pytest.raises(UsageError, match="dispatch 'x' is unknown"):
        cross_node_bytes(result, wire, "x", steps=1)


def test_modelled_time_is_the_sum_of_its_parts_and_falls_with_bandwidth():
    trace = synthetic_trace(tokens=200, experts=16, top_k=4)
    placement = plan(trace, Topology.parse("2x2"), "linear")
    slow = modelled_layer_time(evaluate(placement, trace), Topology.parse("2x2"))
    fast = modelled_layer_time(evaluate(placement, trace), Topology.parse("2x2:h100-400g"))
    assert slow.total == pytest.approx(slow.dispatch + slow.compute + slow.combine + slow.idle)
    assert fast.dispatch < slow.dispatch
    assert fast.compute == slow.compute
    one = modelled_layer_time(evaluate(plan(trace, Topology.parse("1x1"), "linear"), trace), Topology.parse("1x1"))
    assert one.dispatch == one.idle == 0


def test_what_does_not_belong_together():
    trace = synthetic_trace(tokens=40, experts=8, top_k=2)
    placement = plan(trace, Topology.parse("2x2"), "linear")
    with pytest.raises(MismatchError, match=r"num_experts: 8, but synthetic trace has 16; use a trace of the model"):
        evaluate(placement, synthetic_trace(tokens=40, experts=16, top_k=2))
    with pytest.raises(MismatchError, match=r"layers: 1 with ids \[0\]..., but synthetic trace has 2"):
        evaluate(placement, synthetic_trace(tokens=40, layers=2, experts=8, top_k=2))
    with pytest.raises(MismatchError, match="nodes: 2x4, but plan by linear is planned for 2x2; plan again"):
        evaluate(placement, trace, Topology.parse("2x4"))


def test_compare_measures_on_the_other_half():
    trace = synthetic_trace(tokens=200, experts=16, top_k=4)
    result = compare(trace, Topology.parse("2x2"), methods=("linear", "eplb"))
    assert [r.method for r in result.rows] == ["linear", "eplb"]
    assert not set(result.planned_on.requests) & set(result.measured_on.requests)
    value = result.to_dict()
    assert set(value) == {"rows", "topology", "trace", "eval"}
    assert {"method", "plan_seconds", "cross_node_copies", "load_max_over_mean", "slots_total_over_experts", "modelled_layer_time"} <= set(
        value["rows"][0]
    )
