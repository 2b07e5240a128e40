"""The distributed model is the single-process model: tokens equal, logits within 1e-4; bytes are those predicted.

The single process is the oracle; every case runs real processes over gloo.
"""

import os
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from grace_moe.cost.transport import FLAT_BYTES
from grace_moe.cost.wire import COUNT_BYTES, WireFormat
from grace_moe.evaluation import cross_node_bytes, evaluate, passes_of_tokens
from grace_moe.runtime.dispatch.hierarchical import OVERLAP_PAIRS_ON_CPU
from grace_moe.runtime.job.generation import GenerationOptions
from grace_moe.runtime.job.job import Job, RunSpec
from grace_moe.runtime.job.launch import run_local
from grace_moe.runtime.job.recording import record_trace
from grace_moe.runtime.model.loading import load_whole_model
from tests.warm_python import sees_gpus

from .conftest import (
    EXPERTS,
    LAYERS,
    TOP_K,
    contiguous,
    make_model,
    one_on_each_node,
    only_one,
    placement_of,
    requests_of,
    scattered_with_replicas,
)

pytestmark = [pytest.mark.ranks, pytest.mark.usefixtures("warm")]
OPTIONS = GenerationOptions(new_tokens=5, batch_size=4, keep_logits=True, stop_at_eos=False)


def told_ids(trace):
    """Each token's experts, in the router's order. A GPU rounds otherwise than the one process: there two of about the same weight may swap."""
    return (np.sort(trace.topk_ids) if sees_gpus(os.environ) else trace.topk_ids).tolist()


def run_all(tiny_model, tmp_path, shape, num_ranks, cases, lengths, options=OPTIONS):
    """Results of several (placement, dispatch) cases in one job, each checked against one process."""
    requests = requests_of(lengths)
    runs = []
    for name, (devices, dispatch, *in_decode) in cases.items():
        path = tmp_path / f"{name}.json"
        placement_of(shape, devices, in_decode=in_decode[0] if in_decode else None).save(path)
        runs.append(RunSpec(name=name, placement=str(path), dispatch=dispatch))
    job = Job(model=str(tiny_model), requests=requests, options=options, runs=tuple(runs), keep_routing=True)
    results = run_local(job, num_ranks)
    trace, reference = record_trace(
        load_whole_model(str(tiny_model)), requests, replace(options, batch_size=len(requests)), name="tiny", dataset="random"
    )
    by_request = trace.select(np.argsort(trace.requests, kind="stable"))
    for result in results:
        assert (result.routing is None) == (result.dispatch == "vanilla")
        if result.routing is not None:
            assert told_ids(result.routing) == told_ids(by_request)
            for field in ("requests", "phase"):
                assert getattr(result.routing, field).tolist() == getattr(by_request, field).tolist(), field
        assert len(result.completions) == len(requests)
        for ours, oracle in zip(result.completions, reference.completions, strict=True):
            assert ours.request_id == oracle.request_id
            assert ours.tokens == oracle.tokens, result.name
            torch.testing.assert_close(ours.logits, oracle.logits, atol=1e-4, rtol=0)
    return results, trace


def predicted(shape, case, trace, result, hidden_size=32):
    devices, _, *in_decode = case
    placement = placement_of(shape, devices, in_decode=in_decode[0] if in_decode else None)
    evaluation = evaluate(placement, trace, passes=passes_of_tokens(trace, result.first_pass))
    wire = WireFormat(hidden_size=hidden_size, itemsize=4, top_k=TOP_K)
    return cross_node_bytes(evaluation, wire, result.dispatch, steps=result.passes, pass_rows=result.pass_rows)


def test_four_ranks_unequal_requests_replicas_and_one_device(tiny_model, tmp_path):
    """Unequal lengths and counts: ranks 0 and 1 have two requests, 2 and 3 one."""
    cases = {
        "vanilla": (contiguous(4), "vanilla"),
        "contiguous-flat": (contiguous(4), "flat"),
        "contiguous-hierarchical": (contiguous(4), "hierarchical"),
        "replicas-flat": (scattered_with_replicas(4), "flat"),
        "replicas-hierarchical": (scattered_with_replicas(4), "hierarchical"),
        "replicas-auto": (scattered_with_replicas(4), "auto"),
        "contiguous-auto": (contiguous(4), "auto"),
        "one-device-flat": (lambda e: (2,), "flat"),
        "one-device-hierarchical": (lambda e: (2,), "hierarchical"),
    }
    results, trace = run_all(tiny_model, tmp_path, "2x2", 4, cases, [7, 3, 9, 5, 1, 8])
    for result in results:
        if result.name.startswith(("contiguous", "one-device")):  # no draws: the same tokens, to the byte
            assert result.cross_node_bytes == predicted("2x2", cases[result.name], trace, result)
    by_name = {r.name: r for r in results}
    more_counts = (32 - 8) * COUNT_BYTES * LAYERS * by_name["contiguous-auto"].passes  # of the exchange that can serve either way
    assert by_name["contiguous-auto"].cross_node_bytes == by_name["contiguous-flat"].cross_node_bytes + more_counts
    per_expert = by_name["vanilla"].expert_bytes[0] // (EXPERTS // 4)
    for name, (devices, *_) in cases.items():
        if name.startswith("replicas"):
            held = [sum(rank in devices(e) for e in range(EXPERTS)) for rank in range(4)]
            assert by_name[name].expert_bytes == tuple(n * per_expert for n in held)


def test_four_ranks_equal_requests_replicas_bytes_within_two_percent(tiny_model, tmp_path):
    """3000 tokens in a prefill: own rows are computed while others cross; 50 in a decode step: in turn."""
    most = max(sum(rank in scattered_with_replicas(4)(e) for e in range(EXPERTS)) for rank in range(4))
    assert 50 * 60 * TOP_K >= OVERLAP_PAIRS_ON_CPU * 4 * most > 50 * TOP_K
    cases = {
        "vanilla": (contiguous(4), "vanilla"),
        "replicas-flat": (scattered_with_replicas(4), "flat"),
        "replicas-hierarchical": (scattered_with_replicas(4), "hierarchical"),
        "decode-hierarchical": (scattered_with_replicas(4), "hierarchical", lambda e: scattered_with_replicas(4)(e)[-1]),
    }
    options = replace(OPTIONS, new_tokens=9, batch_size=13)
    results, trace = run_all(tiny_model, tmp_path, "2x2", 4, cases, [60] * 50, options)
    for result in results:
        assert result.cross_node_bytes == pytest.approx(predicted("2x2", cases[result.name], trace, result), rel=0.02)


@pytest.mark.parametrize(("shape", "ranks"), [("2x1", 2), ("2x2", 4)])
def test_decode_has_replicas_of_its_own(tiny_model, tmp_path, shape, ranks):
    """Outputs stay the same. In prefill every token stays on its node; what crosses, to the byte, is decode's. Batches differ in their
    numbers of requests and lengths."""
    both, one = one_on_each_node(ranks), only_one(ranks)
    cases = {name: (both, name, one) for name in ("flat", "hierarchical", "auto")} | {"alike": (both, "hierarchical")}
    options = replace(OPTIONS, batch_size=2)
    results, trace = run_all(tiny_model, tmp_path, shape, ranks, cases, [7, 3, 9, 5, 1, 8, 4, 6, 2, 3], options)
    for result in results:
        assert result.cross_node_bytes == predicted(shape, cases[result.name], trace, result)
    by_name = {result.name: result.cross_node_bytes for result in results}
    assert by_name["hierarchical"] > by_name["alike"] + 10 * 32 * 4


def test_auto_is_hierarchical_for_large_batches(tmp_path):
    """A prefill of 60 tokens of 4 KiB a rank is over the limit, a decode step of one is not; predicted to the byte."""
    assert 4096 < FLAT_BYTES < 60 * 4096
    # Weights of 0.3 at this width would put any float32 sum, Transformers' own included, 1e-3 from the float64 logits.
    model = make_model(tmp_path / "wide", hidden_size=1024, num_hidden_layers=2, initializer_range=0.05)
    cases = {name: (contiguous(4), name) for name in ("flat", "hierarchical", "auto")}
    results, trace = run_all(model, tmp_path, "2x2", 4, cases, [60, 60, 50, 60, 9], replace(OPTIONS, new_tokens=3, batch_size=1))
    for result in results:
        assert result.cross_node_bytes == predicted("2x2", cases[result.name], trace, result, hidden_size=1024)
    flat, hierarchical, auto = (result.cross_node_bytes for result in results)
    assert hierarchical < auto < flat


def test_auto_is_hierarchical_throughout_where_all_passes_are_large(tmp_path):
    model = make_model(tmp_path / "wide", hidden_size=1024, num_hidden_layers=2, initializer_range=0.05)
    cases = {name: (contiguous(4), name) for name in ("flat", "hierarchical", "auto")}
    (flat, hierarchical, auto), _ = run_all(model, tmp_path, "2x2", 4, cases, [60] * 4, replace(OPTIONS, new_tokens=1))
    assert auto.cross_node_bytes == hierarchical.cross_node_bytes < flat.cross_node_bytes


def test_one_request_leaves_ranks_without_a_token(tiny_model, tmp_path):
    cases = {"flat": (scattered_with_replicas(2), "flat"), "hierarchical": (scattered_with_replicas(2), "hierarchical")}
    run_all(tiny_model, tmp_path, "2x1", 2, cases, [6])


def test_nodes_of_unequal_size(tiny_model, tmp_path):
    cases = {"flat": (scattered_with_replicas(3), "flat"), "hierarchical": (scattered_with_replicas(3), "hierarchical")}
    run_all(tiny_model, tmp_path, "2+1", 3, cases, [6, 2, 4, 4])


def test_large_batches_on_unequal_nodes_and_ranks_without_experts(tiny_model, tmp_path):
    """Over the size from which stages overlap, with uneven tokens: 11 requests on two ranks, 10 on the third."""
    cases = {"replicas": (scattered_with_replicas(3), "hierarchical"), "one-device": (lambda e: (2,), "hierarchical")}
    lengths = [105, 104, 110, 99, 101, 105, 100, 110, 105, 100] * 3 + [20, 30]
    assert sum(lengths) * TOP_K >= OVERLAP_PAIRS_ON_CPU * 3 * EXPERTS
    run_all(tiny_model, tmp_path, "2+1", 3, cases, lengths, replace(OPTIONS, batch_size=11))


def test_early_stops_end_each_request_where_one_process_does(tmp_path, tiny_model):
    """With end-of-sequence tokens on: requests stop at different steps, and all ranks stop together."""
    options = replace(OPTIONS, new_tokens=12, stop_at_eos=True)
    results, _ = run_all(tiny_model, tmp_path, "1x2", 2, {"hierarchical": (contiguous(2), "hierarchical")}, [3, 4, 5], options)
    assert results[0].passes <= 12
