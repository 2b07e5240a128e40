"""Replay against a slow, obvious reference written from DESIGN.md's definitions, and by hand."""

import statistics
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from grace_moe.choice import choice_table
from grace_moe.errors import MismatchError
from grace_moe.evaluation import METRICS, evaluate
from grace_moe.evaluation import replay as replay_module
from grace_moe.evaluation.replay import decode_steps, sources
from grace_moe.placement import REPLICA_CHOICES, LayerPlacement, Placement, even_weights
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace, synthetic_trace


def topology_of(sizes, speeds=None) -> Topology:
    """Nodes of these sizes; devices of these speeds."""
    speeds = iter([1.0] * sum(sizes) if speeds is None else speeds)
    return Topology.from_dict({"nodes": [{"devices": [{"relative_speed": next(speeds)} for _ in range(n)]} for n in sizes]})


def placement_of(topology, *layers, replica_choice="tar", layer_ids=None) -> Placement:
    rows = [tuple(tuple(devices) for devices in layer) for layer in layers]
    ids = range(len(rows)) if layer_ids is None else layer_ids
    return Placement(
        topology=topology,
        num_experts=len(rows[0]),
        layers=tuple(
            LayerPlacement(layer_id=i, devices_of_expert=r, replica_weights=even_weights(r)) for i, r in zip(ids, rows, strict=True)
        ),
        replica_choice=replica_choice,
    )


def trace_of(ids, experts, **rest) -> RoutingTrace:
    ids = np.array(ids, dtype=np.int16)
    return RoutingTrace(topk_ids=ids, num_experts=experts, layer_ids=tuple(range(ids.shape[1])), source="t", **rest)


# --- the reference -----------------------------------------------------------------------------------------------------------------------


def reference_sources(requests, num_devices):
    dealt = {}
    for request in requests:
        dealt.setdefault(request, len(dealt) % num_devices)
    return [dealt[request] for request in requests]


def reference_steps(requests, phase):
    """Token -> number of its decode batch: the j-th decode token of its request. Prefill tokens are absent."""
    done, steps = {}, {}
    for token, (request, is_decode) in enumerate(zip(requests, phase, strict=True)):
        if is_decode:
            steps[token] = done.get(request, 0)
            done[request] = steps[token] + 1
    return steps


def reference(placement: Placement, trace: RoutingTrace, *, seed=0, passes=()):
    """Every number of DESIGN.md, one token, one expert, one device at a time. Copies and pairs by phase: [prefill, decode]."""
    topology = placement.topology
    members = [list(topology.devices_of_node(n)) for n in range(topology.num_nodes)]
    node_of = {device: n for n, devices in enumerate(members) for device in devices}
    speed = [device.relative_speed for node in topology.nodes for device in node.devices]
    requests = list(range(trace.num_tokens)) if trace.request_ids is None else trace.request_ids.tolist()
    source_of = reference_sources(requests, len(node_of))
    steps = None if trace.phase is None else reference_steps(requests, trace.phase.tolist())
    result = {
        name: []
        for name in ("cross", "intra", "flat", "flat_cross", "pairs", "pairs_cross", "cross_links", "intra_links", "load", "active")
        + ("phase_cross", "phase_load", "pass_cross", "pass_flat_cross")
    }
    for index, layer in enumerate(placement.layers):
        tables = [choice_table(seen, topology, placement.replica_choice) for seen in (layer, layer.in_decode())]
        phase_cross, phase_load = [0, 0], [[0] * len(node_of) for _ in range(2)]
        pass_cross, pass_flat_cross = ([0] * (max(passes, default=-1) + 1) for _ in range(2))
        cross = intra = flat = flat_cross = pairs = pairs_cross = 0
        cross_links = [[0] * len(members) for _ in node_of]
        intra_links = [[0] * max(map(len, members)) for _ in node_of]
        computed = [0] * len(node_of)
        active = {}
        for token in range(trace.num_tokens):
            source, experts = source_of[token], trace.topk_ids[token, index].tolist()
            phase = 0 if trace.phase is None else int(trace.phase[token])
            tokens = (np.array([experts], np.int64), np.array([source]), np.array([token]))
            chosen = tables[phase].choose(layer.layer_id, *tokens, seed=seed)[0].tolist()
            hosts = set()
            for expert, device in zip(experts, chosen, strict=True):
                if expert == -1:
                    assert device == -1
                    continue
                assert device in layer.devices_of_expert[expert]
                if phase and layer.decode_weights:
                    assert layer.decode_weights[expert][layer.devices_of_expert[expert].index(device)] > 0
                hosts.add(device)
                computed[device] += 1
                phase_load[phase][device] += 1
                pairs += device != source
                pairs_cross += node_of[device] != node_of[source]
                if steps is not None and token in steps:
                    active.setdefault(steps[token], {}).setdefault(device, set()).add(expert)
            for node, devices in enumerate(members):
                here = [device for device in devices if device in hosts]
                if node == node_of[source]:
                    hands_on = source
                else:
                    hands_on = devices[members[node_of[source]].index(source) % len(devices)]
                    if here:
                        cross += 1
                        phase_cross[phase] += 1
                        if len(passes):
                            pass_cross[passes[token]] += 1
                        cross_links[source][node] += 1
                for device in here:
                    if device != hands_on:
                        intra += 1
                        intra_links[hands_on][devices.index(device)] += 1
            flat += sum(device != source for device in hosts)
            far = sum(node_of[device] != node_of[source] for device in hosts)
            flat_cross += far
            if len(passes):
                pass_flat_cross[passes[token]] += far
        for name, value in zip(
            ("cross", "intra", "flat", "flat_cross", "pairs", "pairs_cross"),
            (cross, intra, flat, flat_cross, pairs, pairs_cross),
            strict=True,
        ):
            result[name].append(value)
        result["cross_links"].append(cross_links)
        result["intra_links"].append(intra_links)
        result["phase_cross"].append(phase_cross)
        result["phase_load"].append([[count / s for count, s in zip(counts, speed, strict=True)] for counts in phase_load])
        result["pass_cross"].append(pass_cross)
        result["pass_flat_cross"].append(pass_flat_cross)
        result["load"].append([count / s for count, s in zip(computed, speed, strict=True)])
        if steps:
            batches = range(max(steps.values()) + 1)
            result["active"].append([max((len(experts) for experts in active.get(b, {}).values()), default=0) for b in batches])
    return result


@st.composite
def cases(draw):
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    devices, experts, layers = sum(sizes), draw(st.integers(1, 6)), draw(st.integers(1, 2))
    topology = topology_of(sizes, draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=devices, max_size=devices)))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    placed = []
    for layer_id in draw(st.lists(st.integers(0, 60), min_size=layers, max_size=layers, unique=True)):
        rows = tuple(tuple(generator.permutation(devices)[: generator.integers(1, devices + 1)].tolist()) for _ in range(experts))
        raw = [generator.random(len(row)) + 0.01 for row in rows]
        weights = tuple(tuple((w / w.sum()).tolist()) for w in raw)
        in_decode = [w * (generator.random(len(w)) < 0.5) for w in raw]
        in_decode = tuple(tuple((w / w.sum()).tolist()) if w.any() else own for w, own in zip(in_decode, weights, strict=True))
        placed.append(
            LayerPlacement(
                layer_id=layer_id,
                devices_of_expert=rows,
                replica_weights=weights,
                decode_weights=in_decode if draw(st.booleans()) else (),
            )
        )
    placement = Placement(
        topology=topology, num_experts=experts, layers=tuple(placed), replica_choice=draw(st.sampled_from(REPLICA_CHOICES))
    )
    tokens, k = draw(st.integers(0, 12)), draw(st.integers(1, experts))
    ids = np.array([[generator.permutation(experts)[:k] for _ in range(layers)] for _ in range(tokens)], dtype=np.int16).reshape(
        tokens, layers, k
    )
    ids[generator.random(ids.shape) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = -1
    trace = RoutingTrace(
        topk_ids=ids,
        num_experts=experts,
        layer_ids=placement.layer_ids,
        request_ids=draw(st.none() | hnp.arrays(np.int32, tokens, elements=st.integers(-3, 5))),
        phase=draw(st.none() | hnp.arrays(np.uint8, tokens, elements=st.integers(0, 1))),
    )
    return placement, trace, draw(st.integers(0, 3))


@settings(max_examples=150)
@given(case=cases(), chunk=st.sampled_from([1, 12, 2**20]))
def test_replay_is_the_reference(case, chunk):
    placement, trace, seed = case
    passes = np.random.default_rng(seed).integers(0, 3, trace.num_tokens)
    want = reference(placement, trace, seed=seed, passes=passes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay_module, "_CHUNK_CELLS", chunk)
        got = evaluate(placement, trace, seed=seed, passes=passes)
    for name, field in (
        ("cross", got.cross_node),
        ("intra", got.intra_node),
        ("flat", got.flat),
        ("flat_cross", got.flat_cross_node),
        ("pairs", got.pairs),
        ("pairs_cross", got.pairs_cross_node),
        ("cross_links", got.cross_node_links),
        ("intra_links", got.intra_node_links),
        ("load", got.device_load),
        ("pass_cross", got.pass_cross_node),
        ("pass_flat_cross", got.pass_flat_cross_node),
    ):
        assert field.tolist() == want[name], name
    if trace.phase is None or len(set(trace.phase.tolist())) < 2:
        assert got.phases is None
    else:
        assert [p.num_tokens for p in got.phases] == np.bincount(trace.phase, minlength=2).tolist()
        assert [[part.cross_node[i] for part in got.phases] for i in range(len(placement.layers))] == want["phase_cross"]
        assert [[part.device_load[i].tolist() for part in got.phases] for i in range(len(placement.layers))] == want["phase_load"]
    per_token = max(1, trace.num_tokens)
    assert got.cross_node_copies == pytest.approx(statistics.mean(want["cross"]) / per_token)
    assert got.intra_node_copies == pytest.approx(statistics.mean(want["intra"]) / per_token)
    assert got.flat_copies == pytest.approx(statistics.mean(want["flat"]) / per_token)
    assert got.flat_cross_node_copies == pytest.approx(statistics.mean(want["flat_cross"]) / per_token)
    assert got.pair_copies == pytest.approx(statistics.mean(want["pairs"]) / per_token)
    assert got.pair_cross_node_copies == pytest.approx(statistics.mean(want["pairs_cross"]) / per_token)
    if all(sum(load) for load in want["load"]):
        assert got.load_max_over_mean == pytest.approx(statistics.mean(max(x) / statistics.mean(x) for x in want["load"]))
        assert got.load_std_over_mean == pytest.approx(statistics.mean(statistics.pstdev(x) / statistics.mean(x) for x in want["load"]))
        assert got.idle_fraction == pytest.approx(statistics.mean(1 - statistics.mean(x) / max(x) for x in want["load"]))
    if want["active"]:
        assert got.active_experts_max == pytest.approx(statistics.mean(statistics.mean(batches) for batches in want["active"]))
    else:
        assert got.active_experts_max is None
    copies = [sum(map(len, layer.devices_of_expert)) for layer in placement.layers]
    assert got.slots_total_over_experts == pytest.approx(statistics.mean(copies) / placement.num_experts)


@settings(max_examples=40)
@given(case=cases())
def test_copies_are_ordered(case):
    """Deduplication never adds: nodes <= devices <= pairs; the hierarchy moves the rest inside nodes."""
    placement, trace, seed = case
    got = evaluate(placement, trace, seed=seed)
    assert (got.cross_node <= got.flat_cross_node).all()
    assert (got.flat_cross_node <= got.flat).all()
    assert (got.flat <= got.pairs).all()
    assert (got.flat_cross_node <= got.pairs_cross_node).all()
    assert (got.flat <= got.cross_node + got.intra_node).all()
    assert 0 <= got.idle_fraction <= 1


# --- by hand -----------------------------------------------------------------------------------------------------------------------------


def test_copies_by_hand():
    """2x2, expert e on device e, k = 2; tokens 0..3 are dealt to devices 0..3.

    token (source) -> experts: nodes beyond its own, copies inside, devices, those on other nodes, pairs
    0 (0) -> 0, 1:   0, 1 (0>1), 1, 0, 1
    1 (1) -> 2, 3:   1, 1 (enters at 3, 3>2), 2, 2, 2
    2 (2) -> 0, 3:   1, 1 (enters at 0, 2>3), 2, 1, 2
    3 (3) -> -1, 1:  1, 0 (enters at 1), 1, 1, 1
    """
    got = evaluate(placement_of(topology_of([2, 2]), [[0], [1], [2], [3]]), trace_of([[[0, 1]], [[2, 3]], [[0, 3]], [[-1, 1]]], 4))
    assert [got.cross_node.tolist(), got.intra_node.tolist(), got.flat.tolist()] == [[3], [3], [6]]
    assert [got.flat_cross_node.tolist(), got.pairs.tolist(), got.pairs_cross_node.tolist()] == [[4], [6], [4]]
    assert (got.cross_node_copies, got.intra_node_copies, got.flat_copies) == (3 / 4, 3 / 4, 6 / 4)
    assert got.device_load.tolist() == [[2, 2, 1, 2]]
    assert got.load_max_over_mean == 2 / 1.75
    assert got.load_std_over_mean == pytest.approx((3 * 0.25**2 + 0.75**2) ** 0.5 / 2 / 1.75)
    assert got.idle_fraction == 1 - 1.75 / 2
    assert got.active_experts_max is None
    assert (got.slots_total_over_experts, got.slots_max_per_device) == (1.0, 1)
    # Which links carry them. Across: 1 to node 1, 2 and 3 to node 0. Inside: 0 and 2 to local rank 1, 3 to local rank 0.
    assert got.cross_node_links.tolist() == [[[0, 0], [0, 1], [1, 0], [1, 0]]]
    assert got.intra_node_links.tolist() == [[[0, 1], [0, 0], [0, 1], [1, 0]]]


def test_two_experts_on_one_device_are_two_pairs_and_one_copy():
    """2x1, experts 0 and 1 on device 1: token 0 (source 0) sends one copy, and would send two pairs."""
    got = evaluate(placement_of(topology_of([1, 1]), [[1], [1]]), trace_of([[[0, 1]]], 2))
    assert (got.cross_node_copies, got.flat_copies, got.pair_copies, got.intra_node_copies) == (1, 1, 2, 0)


def test_replicas_keep_a_token_at_home():
    """Expert 0 on devices 0 and 2 (one a node): under TAR nothing crosses, and sources 1 and 3 hand over inside their nodes."""
    placement = placement_of(topology_of([2, 2]), [[0, 2]])
    got = evaluate(placement, trace_of([[[0]]] * 4, 1))
    assert (got.cross_node_copies, got.intra_node_copies, got.pair_copies) == (0, 0.5, 0.5)
    assert got.device_load.tolist() == [[2, 0, 2, 0]]
    assert (got.slots_total_over_experts, got.slots_max_per_device) == (2.0, 1)


def test_load_is_over_relative_speed():
    """A device of speed 2 with four pairs is as busy as one of speed 1 with two."""
    got = evaluate(placement_of(topology_of([2], [2.0, 1.0]), [[0], [1]]), trace_of([[[0]]] * 4 + [[[1]]] * 2, 2))
    assert got.device_load.tolist() == [[2.0, 2.0]]
    assert (got.load_max_over_mean, got.idle_fraction) == (1.0, 0.0)


def test_links_and_speeds_to_judge_by_may_be_others():
    placement, trace = placement_of(topology_of([2]), [[0], [1]]), trace_of([[[0]], [[1]]], 2)
    assert evaluate(placement, trace, topology_of([2], [2.0, 1.0])).device_load.tolist() == [[0.5, 1.0]]


def test_the_ingress_is_the_rail_peer_and_wraps_on_smaller_nodes():
    """Nodes of 3 and 2 devices. Source 2 (third of its node) enters the other node at device 3 + 2 % 2 = 3, so expert 0 on 4 is one more copy."""
    placement = placement_of(topology_of([3, 2]), [[4], [3]])
    requests = np.array([0, 1, 2], np.int32)
    got = evaluate(placement, trace_of([[[-1]], [[-1]], [[0]]], 2, request_ids=requests))
    assert (got.cross_node.tolist(), got.intra_node.tolist()) == ([1], [1])
    got = evaluate(placement, trace_of([[[-1]], [[-1]], [[1]]], 2, request_ids=requests))
    assert (got.cross_node.tolist(), got.intra_node.tolist()) == ([1], [0])


def test_requests_are_dealt_in_order_of_first_appearance():
    """Requests 9, 3, 9, 7, 3, -1 over two devices: 9 -> 0, 3 -> 1, 7 -> 0, -1 -> 1."""
    trace = trace_of([[[0]]] * 6, 1, request_ids=np.array([9, 3, 9, 7, 3, -1], np.int32))
    assert sources(trace, 2).tolist() == [0, 1, 0, 0, 1, 1]
    assert sources(trace, 3).tolist() == [0, 1, 0, 2, 1, 0]
    assert sources(trace_of([[[0]]] * 4, 1), 3).tolist() == [0, 1, 2, 0]


@given(requests=st.lists(st.integers(-3, 6), max_size=20), devices=st.integers(1, 5))
def test_sources_are_the_reference(requests, devices):
    trace = trace_of(np.zeros((len(requests), 1, 1)), 1, request_ids=np.array(requests, np.int32))
    assert sources(trace, devices).tolist() == reference_sources(requests, devices)


def test_decode_batches_by_hand():
    """Requests a a b a b b: prefill, decode, decode, decode, prefill, decode."""
    requests, phase = np.array([4, 4, 2, 4, 2, 2], np.int32), np.array([0, 1, 1, 1, 0, 1], np.uint8)
    trace = trace_of([[[0]]] * 6, 1, request_ids=requests, phase=phase)
    assert decode_steps(trace).tolist() == [-1, 0, 0, 1, -1, 1]
    assert decode_steps(trace_of([[[0]]], 1)) is None
    assert decode_steps(trace_of([[[0]]], 1, phase=np.zeros(1, np.uint8))) is None


def test_active_experts_by_hand():
    """1x2, experts 0, 1, 2 on device 0, expert 3 on device 1; two requests decode two steps.

    Step 0: {0, 1} and {0, 2}: device 0 computes three distinct experts. Step 1: {3, 0} and {3, 1}: device 0 two, device 1 one.
    """
    ids = [[[0, 1]], [[0, 2]], [[3, 0]], [[3, 1]]]
    trace = trace_of(ids, 4, request_ids=np.array([0, 1, 0, 1], np.int32), phase=np.ones(4, np.uint8))
    assert evaluate(placement_of(topology_of([2]), [[0], [0], [0], [1]]), trace).active_experts_max == 2.5


def test_decode_uses_its_own_replicas_by_hand():
    """2x1, expert 0 on both devices, decode on device 1 alone: four tokens from either device; in prefill nothing crosses, in
    decode both tokens of device 0 do. Prefill is even, decode all on device 1: 2 and 2 + 4 pairs."""
    placement = placement_of(topology_of([1, 1]), [[0, 1]])
    placement = replace(placement, layers=(replace(placement.layers[0], decode_weights=((0.0, 1.0),)),))
    requests, phase = np.tile([0, 1], 4).astype(np.int32), np.repeat([0, 1], 4).astype(np.uint8)
    got = evaluate(placement, trace_of([[[0]]] * 8, 1, request_ids=requests, phase=phase))
    assert got.device_load.tolist() == [[2, 6]]
    assert (got.prefill_cross_node_copies, got.decode_cross_node_copies, got.cross_node_copies) == (0, 0.5, 0.25)
    assert (got.prefill_load_max_over_mean, got.decode_load_max_over_mean, got.load_max_over_mean) == (1, 2, 1.5)
    only_decode = evaluate(placement, trace_of([[[0]]] * 8, 1, request_ids=requests, phase=np.ones(8, np.uint8)))
    assert only_decode.device_load.tolist() == [[0, 8]]
    assert (only_decode.prefill_load_max_over_mean, only_decode.decode_load_max_over_mean) == (None, None)


def test_numbers_are_means_over_layers():
    """Two layers, one token on device 0: layer 0 sends it to the other node, layer 1 keeps it."""
    placement = placement_of(topology_of([1, 1]), [[1]], [[0]])
    got = evaluate(placement, trace_of([[[0], [0]]], 1))
    assert got.cross_node.tolist() == [1, 0]
    assert got.cross_node_copies == 0.5


def test_an_empty_trace_costs_nothing():
    got = evaluate(placement_of(topology_of([2, 2]), [[0], [1]]), trace_of(np.empty((0, 1, 2)), 2))
    numbers = got.to_dict()
    assert tuple(numbers) == METRICS
    assert {name for name, value in numbers.items() if value not in (0, None)} == {"slots_total_over_experts", "slots_max_per_device"}


def test_a_thousand_nodes_replay_in_bounded_memory():
    topology = Topology.parse("1024x1")
    trace = synthetic_trace(tokens=3000, experts=8, top_k=2)
    got = evaluate(placement_of(topology, [[e] for e in range(8)]), trace)
    assert got.pairs.tolist() == got.pairs_cross_node.tolist()
    assert got.device_load.sum() == 6000


def test_equal_loads_are_never_less_than_even():
    """The mean of equal floats may round to more than each of them."""
    got = evaluate(placement_of(topology_of([3], [2.5] * 3), [[0], [1], [2]]), trace_of([[[0, 1, 2]]], 3))
    assert got.idle_fraction == 0


def test_choices_are_not_kept_beyond_their_layer():
    """24 layers of 4,000 tokens, k = 8: all layers' devices would be 6 MB, one layer's 0.25 MB."""
    trace = synthetic_trace(tokens=4000, layers=1, experts=16, top_k=8)
    trace = trace_of(np.repeat(trace.topk_ids, 24, axis=1), 16)
    placement = placement_of(topology_of([2, 2]), *[[[e % 4] for e in range(16)]] * 24)
    evaluate(placement, trace)
    tracemalloc.start()
    evaluate(placement, trace)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6


def test_the_same_seed_replays_the_same():
    trace = synthetic_trace(tokens=500, experts=8, top_k=2)
    placement = placement_of(topology_of([2, 2]), [[e % 4, (e + 1) % 4] for e in range(8)], replica_choice="wrr")
    one, again, other = (evaluate(placement, trace, seed=s).device_load.tolist() for s in (1, 1, 2))
    assert one == again != other


def test_what_does_not_belong_together():
    topology = topology_of([2, 2])
    trace = trace_of([[[0], [1]]], 4)
    two = [[[0], [1], [2], [3]]] * 2
    evaluate(placement_of(topology, *two), trace)
    with pytest.raises(MismatchError) as error:
        evaluate(placement_of(topology, *[layer[:3] for layer in two]), trace)
    assert str(error.value) == "placement: num_experts: 3, but t has 4; use a trace of the model that was planned for"
    assert error.value.exit_code == 4
    for bad in (placement_of(topology, two[0]), placement_of(topology, *two, layer_ids=(0, 2))):
        with pytest.raises(MismatchError, match=r"placement: layers: \d with ids \[0.*but t has 2 with ids \[0, 1\]"):
            evaluate(bad, trace)
    with pytest.raises(MismatchError, match="1x4: nodes: 1x4, but placement is planned for 2x2; plan again"):
        evaluate(placement_of(topology, *two), trace, Topology.parse("1x4"))
