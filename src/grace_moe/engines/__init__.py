"""Serving engines: their recordings in, plans out, in their own formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from grace_moe.engines.equaliser import Equalised, equalise
from grace_moe.engines.exported import Exported
from grace_moe.engines.models.model_config import ModelShape, read_model_shape
from grace_moe.engines.models.model_sizes import read_model_sizes
from grace_moe.engines.recordings.imported import Hints, Imported
from grace_moe.engines.recordings.llama_cpp import import_csv
from grace_moe.engines.recordings.loads import import_loads
from grace_moe.engines.recordings.npz import import_npz
from grace_moe.engines.sglang.location import export_location, import_location
from grace_moe.engines.sglang.recording import import_dump
from grace_moe.engines.slot_map import SlotMap
from grace_moe.engines.tensorrt_llm.balancer import export_yaml, import_yaml
from grace_moe.engines.tensorrt_llm.statistics import import_statistics
from grace_moe.engines.vllm.formats import export_loads, export_map, import_map, import_routed_experts
from grace_moe.engines.vllm_ascend import export_map as export_ascend_map
from grace_moe.engines.vllm_ascend import import_map as import_ascend_map

__all__ = [
    "EXPORTERS",
    "MAP_IMPORTERS",
    "TRACE_IMPORTERS",
    "Equalised",
    "Exported",
    "Hints",
    "Imported",
    "ModelShape",
    "SlotMap",
    "equalise",
    "export_loads",
    "read_model_shape",
    "read_model_sizes",
]

TRACE_IMPORTERS: dict[str, Callable[[Sequence[Path], Hints], Imported]] = {
    "vllm": import_routed_experts,
    "sglang": import_dump,
    "tensorrt-llm": import_statistics,
    "llama.cpp": import_csv,
    "npz": import_npz,
    "loads": import_loads,
}
"""Engine -> what reads its recordings."""

MAP_IMPORTERS: dict[str, Callable[[Path, int, Hints], SlotMap]] = {
    "vllm": import_map,
    "sglang": import_location,
    "tensorrt-llm": import_yaml,
    "vllm-ascend": import_ascend_map,
}
"""Engine -> what reads its slot maps: (file, ranks, hints)."""


def _export_sglang(slots: SlotMap, hints: Hints, extra_layers: Sequence[int]) -> Exported:
    return export_location(slots, hints.num_hidden_layers)


def _export_tensorrt_llm(slots: SlotMap, hints: Hints, extra_layers: Sequence[int]) -> Exported:
    return export_yaml(slots, extra_layers=extra_layers)


EXPORTERS: dict[str, Callable[[SlotMap, Hints, Sequence[int]], Exported]] = {
    "vllm": lambda slots, hints, extra_layers: export_map(slots),
    "sglang": _export_sglang,
    "tensorrt-llm": _export_tensorrt_llm,
    "vllm-ascend": lambda slots, hints, extra_layers: export_ascend_map(slots),
}
"""Engine -> what writes its slot map: (map, hints, extra layers)."""
