"""Hostile and damaged files: always one of our errors, in one line that names file, field and mend; nothing half-written."""

import json
import os
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from grace_moe.errors import GraceError, PlacementError, TopologyError, TraceError
from grace_moe.files import write_atomically
from grace_moe.placement import LayerPlacement, Placement, even_weights
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace, synthetic_trace

METADATA = {"format": "grace-moe.trace", "version": "1", "num_experts": "4", "model": "m", "dataset": "d", "layer_ids": "[3]"}
IDS = np.array([[[0, 1]], [[2, 3]]], dtype=np.int16)


def write_trace(path, tensors=None, **metadata):
    kept = {k: v for k, v in {**METADATA, **metadata}.items() if v is not None}
    path.write_bytes(save({"topk_ids": IDS} if tensors is None else tensors, metadata=kept))
    return path


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        (None, {"version": "2"}, "version: 2 is newer than 1; upgrade grace-moe"),
        (None, {"version": "x"}, "version: missing or not a whole number"),
        (None, {"format": "other"}, "format: 'other' is not 'grace-moe.trace'"),
        (None, {"num_experts": "3"}, "topk_ids: expert id 3 is not in -1..2; check num_experts"),
        (None, {"num_experts": "99999999"}, "num_experts: 99999999 is not in 1..32767"),
        (None, {"layer_ids": "[1, 2]"}, "layer_ids: 2 numbers for 1 layers; name each layer once"),
        (None, {"layer_ids": "[[[["}, "layer_ids: missing or not a JSON list"),
        (None, {"layer_ids": None}, "layer_ids: missing"),
        ({"x": IDS}, {}, "x: unknown tensor"),
        ({"topk_ids": IDS.astype(np.int64)}, {}, "topk_ids: dtype I64 is not I16 or I32"),
        ({"topk_ids": IDS[0]}, {}, r"topk_ids: int16 \(1, 2\) is not int16 or int32 \[tokens, layers, k\]"),
        ({"topk_ids": IDS * 0}, {}, "topk_ids: token 0 names an expert twice in layer 3"),
        ({"topk_ids": IDS, "phase": np.array([0, 7], np.uint8)}, {}, r"phase: value 7 is not 0 \(prefill\) or 1 \(decode\)"),
        ({"topk_ids": IDS, "request_ids": np.array([0], np.int32)}, {}, r"request_ids: int32 \(1,\) is not int32 \(2,\)"),
        ({"phase": np.array([0, 1], np.uint8)}, {}, "topk_ids: missing"),
    ],
)
def test_bad_traces(tmp_path, tensors, metadata, message):
    path = write_trace(tmp_path / "t.safetensors", tensors, **metadata)
    with pytest.raises(TraceError, match=message) as caught:
        RoutingTrace.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_truncated_and_missing_traces(tmp_path):
    whole = write_trace(tmp_path / "t.safetensors").read_bytes()
    for size in (0, 4, 20, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:size])
        with pytest.raises(TraceError, match="not a whole safetensors file"):
            RoutingTrace.load(tmp_path / "cut.safetensors")
    with pytest.raises(TraceError, match="no such file; check the path"):
        RoutingTrace.load(tmp_path / "absent.safetensors")


def small_placement(devices=((0,), (1, 2), (3,))):
    layer = LayerPlacement(layer_id=5, devices_of_expert=devices, replica_weights=even_weights(devices))
    return Placement(topology=Topology.parse("2x2"), num_experts=3, layers=(layer,), provenance={"method": "by hand"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version: 2 is newer than 1; upgrade grace-moe"),
        ({"format": None}, "format: None is not 'grace-moe.placement'"),
        ({"num_experts": 4}, "layer 5: devices_of_expert: 3 experts instead of 4; give every expert a row: none may be lost"),
        ({"num_experts": True}, None),
        ({"layers": []}, "layers: none, or a layer_id twice"),
        ({"layers": 7}, "layers: missing or not a list"),
        ({"layers": [7]}, r"layers\[0\]: int is not an object"),
        ({"replica_choice": "best"}, "replica_choice: 'best' is unknown; use one of tar, wrr, joint"),
        ({"topology": None}, "topology: NoneType is not an object"),
    ],
)
def test_bad_placements(tmp_path, change, message):
    path = tmp_path / "p.json"
    small_placement().save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(GraceError, match=message) as caught:
        Placement.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("devices", "weights", "message"),
    [
        ([[0], [], [3]], None, r"devices_of_expert\[1\]: the expert is on no device; place every expert at least once"),
        ([[0], [4], [3]], None, r"devices_of_expert\[1\]: names device 4; the topology has devices 0..3"),
        ([[0], [-1], [3]], None, r"devices_of_expert\[1\]: names device -1"),
        ([[0], [1, 1], [3]], None, r"devices_of_expert\[1\]: has two replicas on one device"),
        ([[0], [1, 2], [3]], [[1], [0.5, 0.6], [1]], r"replica_weights\[1\]: .* are not shares"),
        ([[0], [1, 2], [3]], [[1], [1], [1]], r"replica_weights\[1\]: 1 weights for 2 replicas"),
        ([[0], [1, "2"], [3]], None, "not all are whole numbers"),
        ([[0], [1, 2.0], [3]], None, "not all are whole numbers"),
    ],
)
def test_placements_that_break_an_invariant(tmp_path, devices, weights, message):
    path = tmp_path / "p.json"
    small_placement().save(path)
    value = json.loads(path.read_text())
    value["layers"][0]["devices_of_expert"] = devices
    value["layers"][0]["replica_weights"] = weights or [[1 / max(1, len(d))] * len(d) for d in devices]
    path.write_text(json.dumps(value))
    with pytest.raises(PlacementError, match=message):
        Placement.load(path)


@pytest.mark.parametrize("text", ["2x", "0x2", "2x0", "999999x999999", "2x2:nowhere", "two nodes", "", "2X2", "none.json"])
def test_bad_topology_texts(text):
    with pytest.raises(TopologyError):
        Topology.parse(text)


@pytest.mark.parametrize(
    "value",
    [
        {"nodes": []},
        {"nodes": [{"devices": []}]},
        {"nodes": [{"devices": [{"relative_speed": 0}]}]},
        {"nodes": [{"devices": [{"relative_speed": float("nan")}]}]},
        {"nodes": [{"devices": [{"memory_bytes": -5}]}]},
        {"nodes": [{"devices": [{}]}], "links": {"cross_node": {"bandwidth_bytes_per_s": 0, "latency_s": 0}}},
        {"nodes": [{"devices": [{}]}], "links": {"cross_node": {"bandwidth_bytes_per_s": 1}}},
        {"nodes": [{"devices": [{}]}], "bandwidth": [[1, 2]]},
        {"nodes": [{"devices": [{"memory_bytes": float("inf")}]}]},
    ],
)
def test_bad_topology_values(value):
    with pytest.raises(TopologyError):
        Topology.from_dict(value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["nodes", "devices", "links", "name", "bandwidth"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=200)
@given(value=JSON)
def test_any_json_is_a_topology_or_a_topology_error(value):
    with suppress(TopologyError):
        Topology.from_dict(value)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from(["topology", "layers", "num_experts", "version", "provenance", "replica_choice", "model"]), value=JSON)
def test_any_json_in_a_placement_is_ours_or_an_error_of_ours(tmp_path, field, value):
    path = tmp_path / "p.json"
    small_placement().save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with suppress(GraceError):
        Placement.load(path)


def test_deep_json_is_an_error_not_a_crash(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(PlacementError, match="not valid JSON"):
        Placement.load(tmp_path / "deep.json")


@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "plan.json"
    path.write_bytes(b"old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, full_disk)
    with pytest.raises(GraceError, match=r"plan.json: can't be written: No space left on device"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(GraceError, match="No such file or directory; check the folder"):
        small_placement().save(tmp_path / "no" / "plan.json")


def test_round_trips_and_same_bytes(tmp_path):
    trace = synthetic_trace(tokens=50, layers=2, experts=8, top_k=2)
    for path in (tmp_path / "a.safetensors", tmp_path / "b.safetensors"):
        trace.save(path)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    again = RoutingTrace.load(tmp_path / "a.safetensors")
    assert again.digest == trace.digest
    assert again.layer_ids == trace.layer_ids
    np.testing.assert_array_equal(again.phase, trace.phase)
    placement = small_placement()
    placement.save(tmp_path / "p.json")
    loaded = Placement.load(tmp_path / "p.json")
    assert loaded.layers == placement.layers
    loaded.save(tmp_path / "q.json")
    assert (tmp_path / "p.json").read_bytes() == (tmp_path / "q.json").read_bytes()
    topology = Topology.from_dict({"nodes": [{"devices": [{"relative_speed": 2}, {}]}, {"devices": [{}]}], "bandwidth": [[1, 2, 3]] * 3})
    topology.save(tmp_path / "t.json")
    assert Topology.parse(str(tmp_path / "t.json")).to_dict() == topology.to_dict()
    assert topology.shape == "2+1"


def test_split_requests_shares_no_request():
    first, second = synthetic_trace(tokens=64, requests=7).split_requests()
    assert not set(first.requests) & set(second.requests)
    assert first.num_tokens + second.num_tokens == 64
    with pytest.raises(TraceError, match="one request can't be split"):
        synthetic_trace(tokens=4, requests=1).split_requests()


def test_derived_maps():
    placement = small_placement()
    assert placement.experts_of_device(0) == ((0,), (1,), (1,), (2,))
    assert placement.physical_to_logical_map().tolist() == [[0, 1, 1, 2]]
    assert placement.slots_total_over_experts == pytest.approx(4 / 3)
