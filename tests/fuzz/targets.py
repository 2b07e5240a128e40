"""The readers, with whole files to start from: what each must do with any bytes is to succeed or to raise a GraceError."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from grace_moe.discover.reading import declarations_of, read_declared
from grace_moe.engines import MAP_IMPORTERS, TRACE_IMPORTERS, Hints, read_model_shape
from grace_moe.placement import LayerPlacement, Placement, even_weights
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace, expert_loads, read_recording, synthetic_trace
from tests.discover.samples import NVIDIA_SMI, SLURM, TOPOGRAPH, facts
from tests.fuzz.mutations import Parts, join, join_safetensors, rezip, rezip_stored, split_safetensors, unzip, whole

HINTS = Hints(num_experts=8, top_k=2, num_hidden_layers=3)
FREE = Hints(num_experts=8, top_k=2)
"""Of a model that may have as many layers as the file."""
IDS = np.array([[[0, 1], [2, 3], [4, 5]], [[1, 2], [3, 4], [5, 6]], [[7, 0], [6, 1], [5, 2]]], dtype=np.int32)
MAP = [[0, 1, 2, 3, 4, 5, 6, 7, 0, 4, 1, 5], [7, 6, 5, 4, 3, 2, 1, 0, 7, 2, 1, 6]]


@dataclass(frozen=True)
class Target:
    """A reader under test."""

    seeds: Callable[[], list[bytes]]
    """Whole files."""
    read: Callable[[Path], Any]
    """Reads a file, and uses what it found as commands do."""
    ending: str
    split: Callable[[bytes], Parts] = whole
    join: Callable[[Parts], bytes] = join


def _read_trace(path: Path) -> None:
    trace = RoutingTrace.load(path)
    expert_loads(trace)
    trace.save(path)
    assert RoutingTrace.load(path).digest == trace.digest


def _read_topology(path: Path) -> None:
    topology = Topology.parse(str(path))
    topology.save(path)
    assert Topology.parse(str(path)) == topology


def _read_placement(path: Path) -> None:
    placement = Placement.load(path)
    placement.slots_per_device()
    placement.save(path)
    assert Placement.load(path) == placement


def _import(engine: str, hints: Hints = HINTS) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        trace = TRACE_IMPORTERS[engine]([path], hints).trace
        expert_loads(trace)
        trace.save(path.with_name("imported"))
        assert read_recording(path.with_name("imported")).digest == trace.digest

    return read


def _read_map(path: Path) -> None:
    """By the engine whose seed it most looks like."""
    data = path.read_bytes()
    engine = "sglang" if b"physical" in data else "vllm-ascend" if b"layer" in data else "vllm"
    _map(engine, path)


def _map(engine: str, path: Path) -> None:
    MAP_IMPORTERS[engine](path, 4, Hints()).to_placement(Topology.parse("2x2")).save(path.with_name("imported"))
    Placement.load(path.with_name("imported"))


def _read_statistics(path: Path) -> None:
    folder = path.with_name("statistics")
    folder.mkdir(exist_ok=True)
    (folder / "meta_info.json").write_text('{"num_experts": 8}')
    name = "rank0_raw.safetensors" if b"[3,2]" in path.read_bytes() else "rank0.safetensors"
    for other in folder.glob("rank*"):
        other.unlink()
    (folder / name).write_bytes(path.read_bytes())
    expert_loads(TRACE_IMPORTERS["tensorrt-llm"]([folder], Hints()).trace)


def _trace_files() -> list[bytes]:
    numbers = [synthetic_trace(tokens=20, layers=2, experts=8, top_k=2), synthetic_trace(tokens=0, layers=1, experts=4, top_k=1)]
    return [_saved(trace) for trace in numbers]


def _saved(thing: Any) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        thing.save(Path(folder) / "a.json")
        return (Path(folder) / "a.json").read_bytes()


def _topology_files() -> list[bytes]:
    irregular = {"nodes": [{"devices": [{}, {"memory_bytes": 8}]}, {"devices": [{}]}], "bandwidth": [[1.0, 2.0, 3.0]] * 3}
    return [_saved(Topology.parse("2x2")), json.dumps(irregular).encode()]


def _placement_files() -> list[bytes]:
    devices = ((0,), (1, 3), (2,), (2, 0, 1))
    first = LayerPlacement(layer_id=0, devices_of_expert=devices, replica_weights=even_weights(devices))
    second = LayerPlacement(
        layer_id=4,
        devices_of_expert=devices,
        replica_weights=even_weights(devices),
        decode_weights=((1.0,), (0.0, 1.0), (1.0,), (1.0, 0.0, 0.0)),
        node_prices=(0.0, 1.5),
        source_costs=((0.5, 1.0),) * 4,
        replica_choice="joint",
    )
    return [_saved(Placement(topology=Topology.parse("2x2"), num_experts=4, layers=(first, second), model="m"))]


def _npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _npz_files() -> list[bytes]:
    tokens, loads = io.BytesIO(), io.BytesIO()
    np.savez(tokens, topk_ids=IDS, request_ids=np.array([5, 5, 2**40]), phase=np.array([0, 1, 1]), layer_ids=np.arange(3), num_experts=8)
    np.savez_compressed(loads, expert_load=np.arange(24).reshape(3, 8) * 10**9)
    return [tokens.getvalue(), loads.getvalue()]


def _pt_files() -> list[bytes]:
    import torch

    of_slot = torch.tensor([*MAP, MAP[0]])
    record = {"topk_ids_of_layer": torch.from_numpy(IDS).transpose(0, 1).contiguous(), "forward_mode": 1, "extend_seq_lens": [2, 1]}
    dumps = [
        {"records": [{**record, "input_ids": [1, 2, 3], "positions": [0, 1, 0]}], "last_physical_to_logical_map": of_slot},
        {"records": [{"global_physical_count": of_slot * 3, "rank": 0}], "last_physical_to_logical_map": of_slot},
        {"logical_count": torch.arange(48).reshape(2, 3, 8), "rank": 0},
    ]
    files = []
    for dump in dumps:
        stream = io.BytesIO()
        torch.save(dump, stream)
        files.append(stream.getvalue())
    return files


def _csv_files() -> list[bytes]:
    rows = "".join(f"{layer},{expert}\n" for _ in range(2) for layer in range(3) for expert in (1, 2, 3, 4))
    return [f"layer,expert\n{rows}".encode(), rows.encode()]


def _load_table_files() -> list[bytes]:
    rows = "".join(f"{layer},{expert},{10 * expert + layer}\n" for layer in (1, 4) for expert in range(8))
    return [f"layer_id,expert_id,count\n{rows}".encode(), rows.encode()]


def _load_files() -> list[bytes]:
    loads = [[10.5 * expert + layer for expert in range(8)] for layer in range(3)]
    pairs = [[0, 1, 30, 1.5], [2, 3, 20, 1.1], [6, 7, 40, 2.0]]
    counted = {"k": 2, "layers": [{"heat": [60, 50, 40, 45, 5, 6, 70, 64], "pairs": pairs}] * 2}
    return [json.dumps(value).encode() for value in ({"logical_count": [loads]}, {"layer_1": [1] * 8, "layer_3": list(range(8))}, counted)]


def _yaml_files() -> list[bytes]:
    lines = "".join(f"  {layer}: {row}\n" for layer, row in enumerate(MAP))
    return [f"num_slots: 12\ninitial_global_assignments:\n{lines}layer_updates_per_iter: 0\n".encode()]


def _response_files() -> list[bytes]:
    vllm = base64.b64encode(_npy(IDS)).decode()
    return [json.dumps({"choices": [{"routed_experts": vllm}], "usage": {"prompt_tokens": 2}}).encode()]


def _sglang_response_files() -> list[bytes]:
    text = base64.b64encode(IDS.astype("<i4").tobytes()).decode()
    return [
        json.dumps({"meta_info": {"routed_experts": text, "prompt_tokens": 2}}).encode(),
        b'{"meta_info": {}}\n' + json.dumps({"choices": [{"meta_info": {"routed_experts": text}}]}).encode() + b"\n",
    ]


def _map_files() -> list[bytes]:
    ascend = {
        "moe_layer_count": 1,
        "layer_list": [
            {
                "layer_id": 0,
                "device_count": 4,
                "device_list": [{"device_id": d, "device_expert": MAP[0][3 * d : 3 * d + 3]} for d in range(4)],
            }
        ],
    }
    return [json.dumps(value).encode() for value in (MAP, {"physical_to_logical_map": MAP}, ascend)]


def _config_files() -> list[bytes]:
    base = {"num_hidden_layers": 4, "num_experts": 8, "num_experts_per_tok": 2, "model_type": "qwen3_moe"}
    return [
        json.dumps(base | {"decoder_sparse_step": 2, "mlp_only_layers": [0]}).encode(),
        json.dumps({"text_config": base, "model_type": "other"}).encode(),
        json.dumps(base | {"model_type": "deepseek_v3", "first_k_dense_replace": 1, "n_routed_experts": 8, "moe_layer_freq": 1}).encode(),
        json.dumps(base | {"model_type": "llama4", "interleave_moe_layer_step": 2}).encode(),
    ]


def _statistics_files() -> list[bytes]:
    counts = {f"{i}_{layer}": np.arange(8, dtype=np.int64) * (i + 1) for i in range(2) for layer in (1, 3)}
    raw = {f"0_{layer}": np.ascontiguousarray(IDS[:, layer]) for layer in range(3)}
    return [save(counts), save(raw)]


def _declared_files() -> list[bytes]:
    return [SLURM.encode(), json.dumps(TOPOGRAPH).encode(), NVIDIA_SMI.encode()]


def _read_declared(path: Path) -> None:
    declarations_of(read_declared(str(path)), facts(["n0", "n1", "n2", "n3"], LOCAL_RANK=[0, 1, 2, 3]))


TARGETS = {
    "trace": Target(_trace_files, _read_trace, ".safetensors", split_safetensors, join_safetensors),
    "topology": Target(_topology_files, _read_topology, ".json"),
    "placement": Target(_placement_files, _read_placement, ".json"),
    "npz": Target(_npz_files, _import("npz"), ".npz", unzip, rezip),
    "npy": Target(lambda: [_npy(IDS), _npy(IDS.astype(np.uint8)), _npy(np.asfortranarray(IDS))], _import("vllm"), ".npy"),
    "pt": Target(_pt_files, _import("sglang", FREE), ".pt", unzip, rezip_stored),
    "csv": Target(_csv_files, _import("llama.cpp"), ".csv"),
    "load-csv": Target(_load_table_files, _import("loads", FREE), ".csv"),
    "load-json": Target(_load_files, _import("loads", FREE), ".json"),
    "yaml": Target(_yaml_files, lambda path: _map("tensorrt-llm", path), ".yaml"),
    "vllm-json": Target(_response_files, _import("vllm"), ".json"),
    "sglang-jsonl": Target(_sglang_response_files, _import("sglang"), ".jsonl"),
    "maps": Target(_map_files, _read_map, ".json"),
    "statistics": Target(_statistics_files, _read_statistics, ".safetensors", split_safetensors, join_safetensors),
    "declared": Target(_declared_files, _read_declared, ".txt"),
    "config": Target(_config_files, read_model_shape, ".json"),
}
