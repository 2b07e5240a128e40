"""Files from outside that are damaged, hostile or of another kind: a sentence, never a crash, code run, or memory without bound."""

import base64
import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from grace_moe.engines import TRACE_IMPORTERS, Hints
from grace_moe.engines.recordings import dumps, torch_dumps
from grace_moe.errors import GraceError, MissingExtraError, TraceError
from tests.engines.test_imports import EXPERTS, MODEL, npy, routing, sglang_dump, statistics

ANY_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
ENDINGS = {"vllm": ["npy", "json", "jsonl"], "sglang": ["pt", "json"], "llama.cpp": ["csv"], "npz": ["npz"]}


def refused(engine, path, hints=MODEL, says=None):
    with pytest.raises(GraceError, match=says) as error:
        TRACE_IMPORTERS[engine]([path], hints)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@ANY_FILE
@given(st.sampled_from([(e, x) for e, endings in ENDINGS.items() for x in endings]), st.binary(max_size=200))
def test_any_bytes(tmp_path, kind, data):
    engine, ending = kind
    path = tmp_path / f"f.{ending}"
    path.write_bytes(data)
    refused(engine, path)


@ANY_FILE
@given(st.data())
def test_whole_files_with_bytes_changed_or_cut(tmp_path, data):
    whole = {}
    np.save(tmp_path / "w.npy", routing(4).astype(np.uint8))
    np.savez(tmp_path / "w.npz", topk_ids=routing(4), num_experts=EXPERTS)
    sglang_dump(tmp_path, "w.pt")
    (tmp_path / "w.csv").write_text("layer,expert\n" + "0,1\n0,2\n1,3\n1,4\n")
    for engine, ending in (("vllm", "npy"), ("npz", "npz"), ("sglang", "pt"), ("llama.cpp", "csv")):
        whole[engine] = (tmp_path / f"w.{ending}").read_bytes()
    engine = data.draw(st.sampled_from(sorted(whole)))
    raw = bytearray(whole[engine])
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    for at in data.draw(st.lists(st.integers(0, max(0, len(raw) - 1)), max_size=3)):
        if raw:
            raw[at] = data.draw(st.integers(0, 255))
    path = tmp_path / f"f.{ENDINGS[engine][0]}"
    path.write_bytes(bytes(raw))
    try:
        trace = TRACE_IMPORTERS[engine]([path], MODEL).trace
    except GraceError:
        return
    assert trace.topk_ids.max(initial=0) < trace.num_experts


class Runs:
    def __reduce__(self):
        return (print, ("this code ran",))


@pytest.mark.parametrize("ending", ["pt", "npy", "npz"])
def test_pickles_that_run_code_do_not(tmp_path, ending, capfd):
    path = tmp_path / f"f.{ending}"
    if ending == "pt":
        torch.save({"records": [Runs()], "last_physical_to_logical_map": torch.zeros(1, 1)}, path)
    elif ending == "npy":
        np.save(path, np.array([Runs()], dtype=object), allow_pickle=True)
    else:
        np.savez(path, topk_ids=np.array([Runs()], dtype=object))
    refused({"pt": "sglang", "npy": "vllm", "npz": "npz"}[ending], path)
    path.write_bytes(pickle.dumps(Runs()))
    refused({"pt": "sglang", "npy": "vllm", "npz": "npz"}[ending], path)
    assert "ran" not in capfd.readouterr().out


def test_an_array_that_claims_more_than_is_there(tmp_path):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<i4", "fortran_order": False, "shape": (10**12, 3, 2)})
    path = tmp_path / "f.npy"
    path.write_bytes(stream.getvalue() + b"1234")
    refused("vllm", path, says="is not 4 bytes")
    np.save(path, np.zeros((2, 3, 2)))
    refused("vllm", path, says="not whole numbers")
    np.save(path, np.zeros((2, 3), dtype=np.int32))
    refused("vllm", path, says=r"shape \(2, 3\) is not \[tokens, layers, k\]")


def test_an_archive_that_unpacks_beyond_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(dumps, "MAX_BYTES", 10_000)
    path = tmp_path / "f.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("topk_ids.npy", bytes(1_000_000))
    assert path.stat().st_size < 10_000
    refused("npz", path, says="unpacks to over the limit of 10000 bytes")
    refused("sglang", path.rename(tmp_path / "f.pt"), says="unpacks to over the limit")


def test_a_tensor_that_is_a_view_of_one_number(tmp_path):
    path = tmp_path / "f.pt"
    torch.save({"logical_count": torch.zeros(1, dtype=torch.int32).as_strided((10**6, 10**6, 10), (0, 0, 0))}, path)
    refused("sglang", path, says="over the limit")


def test_without_torch_the_extra_is_named(tmp_path, monkeypatch):
    path = sglang_dump(tmp_path)
    monkeypatch.setattr(torch_dumps.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"grace-moe\[runtime\]"):
        TRACE_IMPORTERS["sglang"]([path], Hints())


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"topk_ids_of_layer": torch.full((3, 2, 8), 7, dtype=torch.int32)}, "a slot is outside the map"),
        ({"topk_ids_of_layer": torch.zeros(3, 2, 8)}, "not a tensor of whole numbers"),
        ({"topk_ids_of_layer": torch.zeros(2, 2, 8, dtype=torch.int32)}, "outside the map"),
        ({"topk_ids_of_layer": [1]}, "list is not a tensor"),
    ],
)
def test_recorder_dumps_out_of_range(tmp_path, fields, says):
    refused("sglang", sglang_dump(tmp_path, **fields), says=says)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([1], "list is not a recorder dump"),
        ({"records": 3, "last_physical_to_logical_map": torch.zeros(1, 2, dtype=torch.int64)}, "not a list of records"),
        ({"records": [{}], "last_physical_to_logical_map": torch.zeros(1, 2, dtype=torch.int64)}, "no global_physical_count"),
        ({"records": [], "last_physical_to_logical_map": torch.zeros(1, 2, dtype=torch.int64)}, "tokens: none"),
        ({"records": []}, "NoneType is not a tensor"),
        ({"logical_count": torch.full((1, 1, 2), -4)}, "some negative"),
        ({"logical_count": torch.zeros(1, 1, 2, dtype=torch.int32)}, "layers with experts are given as|none"),
    ],
)
def test_other_dumps(tmp_path, value, says):
    torch.save(value, tmp_path / "f.pt")
    refused("sglang", tmp_path / "f.pt", says=says)


RESPONSES = [
    ("vllm", [], "in no choice"),
    ("vllm", [1], "int is not an object"),
    ("vllm", {"choices": [{"routed_experts": "%%%"}]}, "not base64"),
    ("vllm", {"choices": [{"routed_experts": 5}]}, "int is not base64 text"),
    ("vllm", {"choices": [{"routed_experts": base64.b64encode(b"x").decode()}]}, "not a .npy"),
    ("vllm", {"choices": [{"routed_experts": base64.b64encode(npy(np.full((1, 3, 2), 200, np.uint8))).decode()}]}, "200 is not in 0..5"),
    ("sglang", {"meta_info": {}}, "in no response"),
    ("sglang", {"meta_info": {"routed_experts": base64.b64encode(bytes(7)).decode()}}, "7 bytes are not int32"),
]


@pytest.mark.parametrize(("engine", "value", "says"), RESPONSES)
def test_other_responses(tmp_path, engine, value, says):
    (tmp_path / "f.json").write_text(json.dumps(value))
    refused(engine, tmp_path / "f.json", says=says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("layer,expert\n", "none"),
        ("0,1,2\n", "not two columns"),
        ("0,x\n", "not numbers in columns"),
        ("0,9\n", "out of range"),
        ("0,1\n", "not whole tokens of 2"),
        ("-1,1\n", "out of range"),
    ],
)
def test_other_csv(tmp_path, text, says):
    (tmp_path / "f.csv").write_text(text)
    refused("llama.cpp", tmp_path / "f.csv", says=says)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "none"),
        ({"rank0.safetensors": {"x": np.zeros(EXPERTS, dtype=np.int64)}}, "not ITERATION_LAYER"),
        ({"rank0.safetensors": {"1_99999": np.zeros(EXPERTS, dtype=np.int64)}}, "not ITERATION_LAYER"),
        ({"rank0.safetensors": {"1_0": np.zeros(3, dtype=np.int64)}}, "3 counts for 6 experts"),
        ({"rank0.safetensors": {"1_0": np.zeros(EXPERTS)}}, "not whole numbers"),
        ({"rank0_raw.safetensors": {"1_0": np.full((2, 2), 9, dtype=np.int64)}}, "9 is not in 0..5"),
    ],
)
def test_other_statistics(tmp_path, files, says):
    with pytest.raises(TraceError, match=says):
        TRACE_IMPORTERS["tensorrt-llm"]([statistics(tmp_path, files)], Hints())


def test_statistics_that_are_damaged(tmp_path):
    (statistics(tmp_path, {}) / "rank0.safetensors").write_bytes(b"x" * 50)
    with pytest.raises(TraceError, match="not a whole safetensors file"):
        TRACE_IMPORTERS["tensorrt-llm"]([tmp_path], Hints())
    (tmp_path / "meta_info.json").write_text("{}")
    with pytest.raises(TraceError, match="num_experts: None"):
        TRACE_IMPORTERS["tensorrt-llm"]([tmp_path], Hints())
    refused("tensorrt-llm", tmp_path / "meta_info.json", says="not one folder")
    save_file({"a": np.zeros(1)}, tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"other": np.zeros(3, dtype=int)}, "topk_ids: missing"),
        ({"topk_ids": np.full((2, 1, 1), 9)}, r"ids 9\.\.9 are not in -1\.\.5"),
        ({"topk_ids": np.ones((2, 3, 2), dtype=int)}, "names an expert twice"),
        ({"topk_ids": np.zeros((2, 1, 1), dtype=int), "request_ids": np.zeros(3, dtype=int)}, "request_ids"),
        ({"expert_load": np.zeros((2, 2, 2), dtype=int)}, "is not \\[layers, experts\\]"),
    ],
)
def test_other_archives(tmp_path, arrays, says):
    np.savez(tmp_path / "f.npz", **arrays)
    refused("npz", tmp_path / "f.npz", says=says)
