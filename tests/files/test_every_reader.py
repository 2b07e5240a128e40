"""Every reader of every room opens regular files only, by name or not, and waits for none."""

import os

import pytest

from grace_moe.cli.options import read_text
from grace_moe.engines import MAP_IMPORTERS, TRACE_IMPORTERS, Hints, read_model_shape
from grace_moe.errors import GraceError
from grace_moe.placement import Placement
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace

HINTS = Hints(num_experts=8, top_k=2, num_hidden_layers=3)


def trace_importer(engine):
    return lambda path: TRACE_IMPORTERS[engine]([path], HINTS)


def map_importer(engine):
    return lambda path: MAP_IMPORTERS[engine](path, 2, HINTS)


READERS = {
    "trace.safetensors": RoutingTrace.load,
    "placement.json": Placement.load,
    "topology.json": lambda path: Topology.parse(str(path)),
    "model.json": read_model_shape,
    "text": read_text,
    **{
        f"{engine}{ending}": trace_importer(engine)
        for engine, endings in {
            "npz": [".npz"],
            "vllm": [".npy", ".json", ".jsonl"],
            "sglang": [".pt", ".json", ".jsonl"],
            "llama.cpp": [".csv"],
            "tensorrt-llm": [""],
            "loads": [".csv", ".json", ".jsonl", ".npy", ".npz", ".safetensors"],
        }.items()
        for ending in endings
    },
    **{f"{engine}-map": map_importer(engine) for engine in MAP_IMPORTERS},
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("what", ["pipe", "device", "folder", "nothing", "not readable"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, name, what):
    path = tmp_path / name
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "folder":
        path.mkdir()
    elif what == "not readable":
        path.symlink_to(path)
    with pytest.raises(GraceError) as error:
        READERS[name](path)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", [name for name in READERS if name != "text"])
def test_names_with_bytes_that_are_no_text(tmp_path, name):
    path = tmp_path / os.fsdecode(b"\xff\xfe" + os.fsencode(name))
    path.write_bytes(b"\x00 no such file")
    with pytest.raises(GraceError) as error:
        READERS[name](path)
    assert str(error.value).encode()
