"""`evaluate` against the reference, and what it refuses."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_moe.cost.layer_time import modelled_layer_time
from grace_moe.errors import MismatchError
from grace_moe.evaluation import chunks, evaluate
from grace_moe.topology import Topology
from grace_moe.trace import synthetic_trace

from .cases import cases, placement_of, topology_of, trace_of
from .reference import reference, reference_metrics


def dense(links):
    return np.array([layer.toarray() for layer in links])


@settings(max_examples=100)
@given(case=cases(), chunk=st.sampled_from([1, 12, 2**20]))
def test_replay_is_the_reference(case, chunk):
    placement, trace, seed = case
    passes = np.random.default_rng(seed).integers(0, 3, trace.num_tokens)
    want = reference(placement, trace, seed=seed, passes=passes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_CELLS", chunk)
        got = evaluate(placement, trace, seed=seed, passes=passes)
    for name, field in (
        ("cross", got.copies.cross_node),
        ("intra", got.copies.intra_node),
        ("flat", got.copies.flat),
        ("flat_cross", got.copies.flat_cross_node),
        ("pairs", got.copies.pairs),
        ("pairs_cross", got.copies.pairs_cross_node),
        ("cross_links", dense(got.cross_node_links)),
        ("intra_links", dense(got.intra_node_links)),
        ("load", got.device_load),
        ("pass_cross", got.by_pass.cross_node),
        ("pass_flat_cross", got.by_pass.flat_cross_node),
    ):
        assert field.tolist() == want[name], name


@settings(max_examples=100)
@given(case=cases())
def test_every_metric_is_the_references(case):
    placement, trace, seed = case
    want = reference_metrics(placement, trace, reference(placement, trace, seed=seed))
    got = evaluate(placement, trace, seed=seed)
    found = got.to_dict() | modelled_layer_time(got, placement.topology).to_dict()
    assert found.pop("batch_load_max_over_mean") is None
    assert set(found) == set(want)
    for name, value in found.items():
        assert value == (None if want[name] is None else pytest.approx(want[name], rel=1e-12, abs=1e-14)), name


@settings(max_examples=40)
@given(case=cases())
def test_copies_are_ordered(case):
    """Deduplication never adds: nodes <= devices <= pairs; the hierarchy moves the rest inside nodes."""
    placement, trace, seed = case
    got = evaluate(placement, trace, seed=seed)
    assert (got.copies.cross_node <= got.copies.flat_cross_node).all()
    assert (got.copies.flat_cross_node <= got.copies.flat).all()
    assert (got.copies.flat <= got.copies.pairs).all()
    assert (got.copies.flat_cross_node <= got.copies.pairs_cross_node).all()
    assert (got.copies.flat <= got.copies.cross_node + got.copies.intra_node).all()
    assert 0 <= got.idle_fraction <= 1


def test_links_and_speeds_to_judge_by_may_be_others():
    placement, trace = placement_of(topology_of([2]), [[0], [1]]), trace_of([[[0]], [[1]]], 2)
    assert evaluate(placement, trace, topology_of([2], [2.0, 1.0])).device_load.tolist() == [[0.5, 1.0]]


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


def test_a_thousand_nodes_replay_in_bounded_memory():
    topology = Topology.parse("1024x1")
    trace = synthetic_trace(tokens=3000, experts=8, top_k=2)
    got = evaluate(placement_of(topology, [[e] for e in range(8)]), trace)
    assert got.copies.pairs.tolist() == got.copies.pairs_cross_node.tolist()
    assert got.device_load.sum() == 6000


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
