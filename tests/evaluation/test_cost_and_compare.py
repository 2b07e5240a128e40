"""Bytes between nodes, the modelled time of a layer, and methods side by side."""

import importlib
import json
from dataclasses import replace

import numpy as np
import pytest

from grace_moe import compare, evaluate
from grace_moe.cost.wire import DISPATCHES, WireFormat
from grace_moe.errors import MismatchError, UsageError
from grace_moe.evaluation import (
    METRICS,
    Evaluation,
    cross_node_bytes,
    cross_node_bytes_per_token,
    modelled_layer_time,
    passes_of_tokens,
)
from grace_moe.planning import plan
from grace_moe.topology import Link, Topology
from grace_moe.trace import RoutingTrace, synthetic_trace

compare_module = importlib.import_module("grace_moe.evaluation.compare")  # the package's own `compare` is the function
TRACE = synthetic_trace(tokens=400, layers=2, experts=16, top_k=4)
TOPOLOGY = Topology.parse("2x2")
WIRE = WireFormat(hidden_size=32, itemsize=4, top_k=4)


def evaluation_of(*, layers=1, devices_per_node=(2, 2), tokens=10, load=None, cross=None, intra=None, **copies) -> Evaluation:
    """An evaluation of these totals and links (the same in every layer); what isn't given is 0."""
    names = ("cross_node", "intra_node", "flat", "flat_cross_node", "pairs", "pairs_cross_node")
    devices = sum(devices_per_node)
    return Evaluation(
        num_tokens=tokens,
        **{name: np.full(layers, copies.get(name, 0), dtype=np.int64) for name in names},
        cross_node_links=np.array([cross or [[0] * len(devices_per_node)] * devices] * layers),
        intra_node_links=np.array([intra or [[0] * max(devices_per_node)] * devices] * layers),
        device_load=np.array([load or [tokens / devices] * devices] * layers, dtype=float),
        active_experts=None,
        slots=np.full((layers, devices), 4),
        num_experts=16,
        devices_per_node=devices_per_node,
    )


def test_a_row_on_the_wire():
    """32 floats, and four slots of 2 bytes and weights of 4."""
    assert (WIRE.hidden_bytes, WIRE.dispatch_row_bytes) == (128, 152)


@pytest.mark.parametrize(
    ("dispatch", "copies", "want"),
    [
        # rows there (152) and back (128), and per step and layer counts of 8 bytes: 4 devices x 2 on the other node x (2 devices there + the node + all tokens)
        ("hierarchical", {"cross_node": 7}, 2 * (7 * 280 + 3 * 32 * 8)),
        # counts between devices on different nodes: 4 x 2
        ("flat", {"flat_cross_node": 7}, 2 * (7 * 280 + 3 * 8 * 8)),
        # hidden states there and back; counts of each of a peer's 16 / 4 experts
        ("vanilla", {"pairs_cross_node": 7}, 2 * (7 * 256 + 3 * 8 * 4 * 8)),
    ],
)
def test_cross_node_bytes_by_hand(dispatch, copies, want):
    """2x2, two layers, seven copies in each, three steps."""
    others = {"cross_node": 1000, "flat_cross_node": 1000, "pairs_cross_node": 1000, "intra_node": 1000}
    assert cross_node_bytes(evaluation_of(layers=2, **others | copies), WIRE, dispatch, steps=3) == want


def test_unequal_nodes_have_fewer_far_pairs():
    """Nodes of 3 and 1: 6 ordered pairs on different nodes; 5 counts to each of 3 devices there, 3 to the one."""
    nothing = evaluation_of(devices_per_node=(3, 1))
    assert cross_node_bytes(nothing, WIRE, "flat", steps=1) == 6 * 8
    assert cross_node_bytes(nothing, WIRE, "hierarchical", steps=1) == (3 * 5 + 3 * 3) * 8


BY_PASS = {"pass_cross_node": np.array([[4, 2, 1]] * 2), "pass_flat_cross_node": np.array([[6, 3, 2]] * 2)}


def test_auto_goes_by_the_rows_of_each_pass():
    """128 bytes a row: 1024 rows over four ranks are the 32 KiB a rank up to which a pass is flat, one more is not. So 4 + 3 + 2 copies
    a layer, and hierarchical's counts in each of the three passes."""
    evaluation = replace(evaluation_of(layers=2), **BY_PASS)
    assert cross_node_bytes(evaluation, WIRE, "auto", steps=3, pass_rows=(1025, 1024, 4)) == 2 * (9 * 280 + 3 * 32 * 8)
    assert cross_node_bytes_per_token(evaluation, WIRE, "auto", steps=3, pass_rows=(1025, 1024, 4)) == 2 * (9 * 280 + 3 * 32 * 8) / 10
    # A last pass without a token of the trace still exchanges counts.
    assert cross_node_bytes(evaluation, WIRE, "auto", steps=4, pass_rows=(1025, 1024, 4, 4)) == 2 * (9 * 280 + 4 * 32 * 8)


def test_auto_needs_its_passes():
    evaluation = replace(evaluation_of(layers=2), **BY_PASS)
    with pytest.raises(UsageError, match="auto goes by the rows of each forward pass; evaluate with passes, and give pass_rows"):
        cross_node_bytes(evaluation, WIRE, "auto", steps=3)
    with pytest.raises(UsageError, match="auto goes by the rows of each forward pass"):
        cross_node_bytes(evaluation_of(), WIRE, "auto", steps=3, pass_rows=(1, 1, 1))
    with pytest.raises(UsageError, match="pass_rows: 2 for 2 steps and 3 passes counted; give each pass its rows"):
        cross_node_bytes(evaluation, WIRE, "auto", steps=2, pass_rows=(4, 4))


def test_passes_of_tokens_by_hand():
    """Request 7 begins at pass 0, request 5 at pass 3: two tokens of prefill and two of decode each, as recorded in one batch."""
    requests, phase = np.array([7, 7, 5, 5, 7, 5, 7, 5], np.int32), np.array([0, 0, 0, 0, 1, 1, 1, 1], np.uint8)
    trace = RoutingTrace(topk_ids=np.zeros((8, 1, 1), np.int16), num_experts=1, layer_ids=(0,), request_ids=requests, phase=phase)
    assert passes_of_tokens(trace, (0, 3)).tolist() == [0, 0, 3, 3, 1, 4, 2, 5]
    assert passes_of_tokens(replace(trace, phase=None), (0, 3)).tolist() == [0, 0, 3, 3, 0, 3, 0, 3]
    with pytest.raises(UsageError, match="first_pass: 1 requests, but trace has 2; give one each"):
        passes_of_tokens(trace, (0,))


def test_one_node_has_nothing_to_send_across():
    for dispatch in set(DISPATCHES) - {"auto"}:
        assert cross_node_bytes(evaluation_of(devices_per_node=(4,), intra_node=9), WIRE, dispatch, steps=5) == 0


def test_an_unknown_dispatch():
    with pytest.raises(UsageError, match="dispatch 'ring' is unknown; use one of vanilla, flat, hierarchical"):
        cross_node_bytes(evaluation_of(), WIRE, "ring", steps=1)


def test_bytes_per_token():
    evaluation = evaluation_of(tokens=10, cross_node=7)
    assert cross_node_bytes_per_token(evaluation, WIRE, "hierarchical", steps=3) == (7 * 280 + 3 * 32 * 8) / 10
    assert cross_node_bytes_per_token(evaluation_of(tokens=0), WIRE, "hierarchical", steps=3) == 0


def slow_links(**changes) -> Topology:
    """2x2: 50 B/s and 1 s across, 100 B/s and 0.5 s inside."""
    across, inside = Link(bandwidth_bytes_per_s=50, latency_s=1), Link(bandwidth_bytes_per_s=100, latency_s=0.5)
    return replace(TOPOLOGY, cross_node=across, intra_node=inside, **changes)


ACROSS = [[0, 1], [0, 1], [1, 0], [1, 0]]
"""Every device sends one copy to its rail peer on the other node."""
INSIDE = [[0, 2], [2, 0], [0, 2], [2, 0]]
"""Every device sends two copies to the other device of its node."""


def dispatch_time(topology=None, *, row_bytes=100, **links) -> float:
    """Of 8 tokens, as many as were replayed."""
    return modelled_layer_time(evaluation_of(tokens=8, **links), topology or slow_links(), batch_tokens=8, row_bytes=row_bytes).dispatch


def test_layer_time_by_hand():
    """A copy of 100 bytes from each device across (50 B/s, 1 s), two inside (100 B/s, 0.5 s).
    Loads 6, 2, 4, 4 of 16 pairs at 2 pairs a second."""
    evaluation = evaluation_of(tokens=8, cross=ACROSS, intra=INSIDE, load=[6, 2, 4, 4])
    got = modelled_layer_time(evaluation, slow_links(), batch_tokens=8, row_bytes=100, pairs_per_second=2)
    assert (got.dispatch, got.combine) == ((1 + 2) + (0.5 + 2), (1 + 2) + (0.5 + 2))
    assert (got.compute, got.idle) == (2.0, 1.0)
    assert got.total == 5.5 + 5.5 + 2 + 1


def test_a_stage_ends_with_the_device_that_sends_most():
    """The same four copies, all from device 0: 4 x 2 s."""
    assert dispatch_time(cross=[[0, 4], [0, 0], [0, 0], [0, 0]]) == 1 + 8


def test_or_that_takes_in_most():
    """1x4, one copy from each of three devices to the fourth: it takes in for 3 s, each sender is done after one."""
    topology = replace(Topology.parse("1x4"), intra_node=Link(bandwidth_bytes_per_s=100, latency_s=0.5))
    assert dispatch_time(topology, devices_per_node=(4,), cross=[[0]] * 4, intra=[[0] * 4, [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]) == 3.5


def test_sending_and_taking_in_go_on_at_once():
    assert dispatch_time(cross=ACROSS) == dispatch_time(cross=[[0, 1], [0, 0], [0, 0], [0, 0]]) == 1 + 2


def test_layers_are_waited_for_one_by_one():
    """Layer 0 loads device 0, layer 1 device 1: over both they are even, and yet each layer takes 4 x 2 s."""
    evaluation = replace(
        evaluation_of(layers=2, tokens=8), cross_node_links=np.array([[[0, 4], [0, 0], [0, 0], [0, 0]], [[0, 0], [0, 4], [0, 0], [0, 0]]])
    )
    assert modelled_layer_time(evaluation, slow_links(), batch_tokens=8, row_bytes=100).dispatch == 1 + 8


def test_a_matrix_of_bandwidths_is_used_where_it_is_given():
    """All links 50 B/s but 0 -> 2, of 10 B/s: its copy takes 10 s, and the others' do not matter. Inside, 2 copies of 2 s."""
    matrix = [[50.0] * 4 for _ in range(4)]
    matrix[0][2] = 10.0
    irregular = slow_links(bandwidth=tuple(map(tuple, matrix)))
    assert dispatch_time(irregular, cross=ACROSS) == 1 + 10
    assert dispatch_time(irregular, cross=[[0, 0], *ACROSS[1:]]) == 1 + 2
    assert dispatch_time(irregular, intra=INSIDE) == 0.5 + 4


def test_unequal_nodes_send_to_the_peer_that_is_there():
    """Nodes of 3 and 1: the three devices of node 0 all send to device 3, which takes in 3 x 2 s."""
    topology = Topology.from_dict({"nodes": [{"devices": [{}] * 3}, {"devices": [{}]}]})
    topology = replace(topology, cross_node=Link(bandwidth_bytes_per_s=50, latency_s=1))
    assert dispatch_time(topology, devices_per_node=(3, 1), cross=[[0, 1]] * 3 + [[0, 0]]) == 1 + 6


def test_layer_time_of_another_shape_is_refused():
    with pytest.raises(MismatchError, match=r"1x4: nodes: 1x4, but the evaluation is of nodes of 2\+2; evaluate again"):
        modelled_layer_time(evaluation_of(), Topology.parse("1x4"))


def test_layer_time_is_the_sum_of_its_parts():
    got = modelled_layer_time(evaluate(plan(TRACE, TOPOLOGY, "linear"), TRACE), TOPOLOGY)
    parts = got.to_dict()
    assert parts.pop("modelled_layer_time") == got.total == pytest.approx(sum(parts.values()))
    assert set(parts) == {f"modelled_{part}_time" for part in ("dispatch", "compute", "combine", "idle")}
    assert min(parts.values()) >= 0


def test_without_copies_nothing_is_transferred():
    got = modelled_layer_time(evaluation_of(), TOPOLOGY)
    assert (got.dispatch, got.combine, got.idle) == (0, 0, 0)
    assert got.compute > 0


def test_twice_the_bandwidth_halves_what_is_not_latency():
    cross, intra = Link(bandwidth_bytes_per_s=1e9, latency_s=0.25), Link(bandwidth_bytes_per_s=1e12, latency_s=0)
    slow = replace(TOPOLOGY, cross_node=cross, intra_node=intra)
    fast = replace(slow, cross_node=replace(cross, bandwidth_bytes_per_s=2e9))
    one, two = (modelled_layer_time(evaluation_of(cross=ACROSS), topology) for topology in (slow, fast))
    assert two.dispatch - 0.25 == pytest.approx((one.dispatch - 0.25) / 2)
    assert (two.compute, two.idle) == (one.compute, one.idle)


def test_time_is_linear_in_the_batch_but_for_latency():
    free = Link(bandwidth_bytes_per_s=1e9, latency_s=0)
    topology = replace(TOPOLOGY, cross_node=free, intra_node=free)
    evaluation = evaluation_of(cross=ACROSS, intra=INSIDE, load=[1, 2, 3, 4])
    one, two = (modelled_layer_time(evaluation, topology, batch_tokens=n).total for n in (1000, 2000))
    assert two == pytest.approx(2 * one)


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
    methods = ("linear", "eplb", "grace_paper")
    for row in compare(TRACE, small, methods=methods, expert_bytes=100).rows:
        assert row.placement.provenance["options"]["expert_bytes"] == 100
        assert row.evaluation.slots_max_per_device <= 5
    with pytest.raises(UsageError, match="memory_bytes: room for 12 experts a layer"):
        compare(TRACE, small, methods=methods, expert_bytes=150)


def test_an_unknown_method_is_refused():
    with pytest.raises(UsageError, match="method 'best' is unknown; use one of grace, "):
        compare(TRACE, TOPOLOGY, methods=("best",))
