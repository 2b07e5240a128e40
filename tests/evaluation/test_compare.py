"""Methods side by side."""

import importlib
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from grace_moe import compare, evaluate
from grace_moe.errors import MismatchError, UsageError
from grace_moe.evaluation import METRICS
from grace_moe.report import comparison_table
from grace_moe.topology import Topology
from grace_moe.trace import synthetic_trace

compare_module = importlib.import_module("grace_moe.evaluation.compare")  # the package's own `compare` is the function
TRACE = synthetic_trace(tokens=400, layers=2, experts=16, top_k=4)
TOPOLOGY = Topology.parse("2x2")


def test_compare_has_a_row_a_method_in_order():
    told = []
    comparison = compare(TRACE, TOPOLOGY, methods=("eplb", "linear"), on_method=told.append)
    assert [row.method for row in comparison.rows] == told == ["eplb", "linear"]
    assert [row.placement.provenance["method"] for row in comparison.rows] == told
    for row in comparison.rows:
        assert row.evaluation.to_dict() == evaluate(row.placement, comparison.measured_on).to_dict()


def test_compare_measures_requests_that_were_not_planned_on():
    comparison = compare(TRACE, TOPOLOGY, methods=("linear",))
    planned, measured = comparison.planned_on, comparison.measured_on
    assert not set(planned.requests.tolist()) & set(measured.requests.tolist())
    assert planned.num_tokens + measured.num_tokens == TRACE.num_tokens
    assert comparison.rows[0].placement.provenance["trace_digest"] == planned.digest
    assert comparison.rows[0].evaluation.num_tokens == measured.num_tokens


def test_a_second_trace_is_measured_whole_and_the_first_planned_on_whole():
    other = synthetic_trace(tokens=100, layers=2, experts=16, top_k=4, seed=1)
    comparison = compare(TRACE, TOPOLOGY, measure_on=other, methods=("linear",))
    assert comparison.planned_on is TRACE
    assert comparison.measured_on is other


def test_comparison_json_is_designs():
    value = json.loads(json.dumps(compare(TRACE, TOPOLOGY, methods=("linear",)).to_dict(), allow_nan=False))
    assert set(value) == {"rows", "topology", "trace", "eval"}
    assert value["topology"] == "2x2"
    assert value["trace"]["digest"] != value["eval"]["digest"]
    (row,) = value["rows"]
    assert list(row)[:2] == ["method", "plan_seconds"]
    assert set(METRICS) | {"modelled_layer_time"} <= set(row)
    assert {"cross_node_copies", "intra_node_copies", "flat_copies", "flat_cross_node_copies", "pair_copies"} <= set(METRICS)
    assert {"load_max_over_mean", "load_std_over_mean", "idle_fraction", "active_experts_max"} <= set(METRICS)
    assert {"slots_total_over_experts", "slots_max_per_device"} <= set(METRICS)


def test_a_trace_of_another_model_is_refused():
    with pytest.raises(MismatchError, match="num_experts: 16, but synthetic trace has 8; use a trace of the model that was planned for"):
        compare(TRACE, TOPOLOGY, measure_on=synthetic_trace(tokens=10, layers=2, experts=8, top_k=4))


def test_it_is_refused_before_anything_is_planned(monkeypatch):
    monkeypatch.setattr(compare_module, "plan", None)
    with pytest.raises(MismatchError, match=r"layers: 2 with ids \[0, 1\]..., but synthetic trace has 1 with ids \[0\]"):
        compare(TRACE, TOPOLOGY, measure_on=synthetic_trace(tokens=10, layers=1, experts=16, top_k=4))


def test_limits_reach_every_plan():
    """A device of 1,000 bytes holds 5 experts of 100 bytes in each of two layers: four of them hold 20, not 1.25 x 16."""
    small = Topology.from_dict({"nodes": [{"devices": [{"memory_bytes": 1000}] * 2}] * 2})
    methods = ("linear", "eplb", "biased")
    for row in compare(TRACE, small, methods=methods, expert_bytes=100).rows:
        assert row.placement.provenance["options"]["expert_bytes"] == 100
        assert row.evaluation.slots_max_per_device <= 5
    with pytest.raises(UsageError, match="memory_bytes: room for 12 experts a layer"):
        compare(TRACE, small, methods=methods, expert_bytes=150)


def test_a_method_that_cannot_plan_is_a_row_that_says_why():
    """`grace_paper` needs an expert for every device; the others leave devices empty."""
    told = []
    comparison = compare(TRACE, Topology.parse("4x5"), methods=("linear", "grace_paper", "occult"), on_method=told.append)
    assert told == ["linear", "grace_paper", "occult"]
    assert [row.method for row in comparison.rows] == ["linear", "occult"]
    (refusal,) = comparison.to_dict()["rows"][2:]
    assert refusal["method"] == "grace_paper"
    assert "16 experts on 20 devices" in refusal["error"]
    comparison.require("linear")
    with pytest.raises(UsageError, match="16 experts on 20 devices"):
        comparison.require("linear", "grace_paper")


def test_where_no_method_can_plan_the_first_reason_is_raised():
    with pytest.raises(UsageError, match="16 experts on 20 devices"):
        compare(TRACE, Topology.parse("4x5"), methods=("grace_paper",))
    with pytest.raises(UsageError, match="redundancy"):
        compare(TRACE, TOPOLOGY, methods=("linear", "eplb"), redundancy=0.5)


def test_an_unknown_method_is_refused():
    with pytest.raises(UsageError, match="method 'best' is unknown; use one of grace, "):
        compare(TRACE, TOPOLOGY, methods=("best",))


def test_layers_that_were_not_recorded_are_named():
    ids = np.concatenate([TRACE.topk_ids, np.full_like(TRACE.topk_ids[:, :1], -1)], axis=1)
    trace = replace(TRACE, topk_ids=ids, layer_ids=(3, 4, 7))
    comparison = compare(trace, TOPOLOGY, methods=("linear",))
    (note,) = comparison.to_dict()["notes"]
    assert note.endswith("nothing was recorded of layer 7: left out of all means.")
    assert "notes" not in compare(TRACE, TOPOLOGY, methods=("linear",)).to_dict()
    console = Console(width=200)
    with console.capture() as shown:
        console.print(comparison_table(comparison))
    assert note in shown.get()
    assert comparison.rows[0].evaluation.to_dict() == compare(TRACE, TOPOLOGY, methods=("linear",)).rows[0].evaluation.to_dict()
