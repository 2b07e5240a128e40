"""TensorRT-LLM: expert statistics in. Layers have the model's own numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from grace_moe.engines.counts import trace_of_counts
from grace_moe.engines.dumps import MAX_ELEMENTS
from grace_moe.engines.imported import Hints, Imported
from grace_moe.engines.requests import RoutedRequest, trace_of_requests
from grace_moe.engines.slot_tables import MAX_LAYERS
from grace_moe.errors import InputFileError, TraceError
from grace_moe.files import read_json

_AGAIN = "record it again with EXPERT_STATISTIC_PATH"


def import_statistics(paths: Sequence[Path], hints: Hints) -> Imported:
    """A folder that `EXPERT_STATISTIC_PATH` named: `meta_info.json` and `rank*.safetensors`. Where newer releases wrote
    `rank*_raw.safetensors` too, tokens and their co-activation; else counts.

    Raises:
        TraceError: not such a folder, or damaged.
    """
    if len(paths) != 1 or not paths[0].is_dir():
        raise TraceError(str(paths[0]), "folder", "not one folder", "give the folder that EXPERT_STATISTIC_PATH named")
    folder = paths[0]
    meta = read_json(folder / "meta_info.json", InputFileError)
    experts = meta.get("num_experts") if isinstance(meta, dict) else None
    if type(experts) is not int or not 1 <= experts <= 32_767:
        raise TraceError(str(folder / "meta_info.json"), "num_experts", f"{experts!r} is not in 1..32767", _AGAIN)
    raw = sorted(folder.glob("rank*_raw.safetensors"))
    if raw:
        return _import_raw(raw, hints, experts)
    files = [path for path in sorted(folder.glob("rank*.safetensors")) if path not in raw]
    if not files:
        raise TraceError(str(folder), "rank*.safetensors", "none", _AGAIN)
    total: dict[int, npt.NDArray[np.int64]] = {}
    for path in files:
        for (_, layer), counts in _tensors(path, 1).items():
            if len(counts) != experts:
                raise TraceError(str(path), f"layer {layer}", f"{len(counts)} counts for {experts} experts", _AGAIN)
            total[layer] = total.get(layer, np.zeros(experts, dtype=np.int64)) + counts
    layers = hints.layer_ids or tuple(sorted(total))
    absent = [layer for layer in layers if layer not in total]
    if absent or not layers:
        raise TraceError(str(folder), "layers", f"no counts of layer {absent[:1]}", "check the layers with experts")
    return trace_of_counts(np.stack([total[layer] for layer in layers]), layers, hints, str(folder))


def _import_raw(files: Sequence[Path], hints: Hints, num_experts: int) -> Imported:
    """Tokens of each rank and iteration, where all layers saw the same number of them."""
    passes: list[npt.NDArray[np.int64]] = []
    layers: tuple[int, ...] | None = hints.layer_ids
    seen, dropped, alike = set(), 0, 0
    for path in files:
        by_iteration: dict[int, dict[int, npt.NDArray[np.int64]]] = defaultdict(dict)
        for (iteration, layer), ids in _tensors(path, 2).items():
            by_iteration[iteration][layer] = ids
        for _, chosen in sorted(by_iteration.items()):
            layers = layers or tuple(sorted(chosen))
            if set(chosen) < set(layers) or len({chosen[layer].shape for layer in layers}) > 1:
                dropped += 1
                continue
            stacked = np.stack([chosen[layer] for layer in layers], axis=1)
            key = stacked.tobytes()
            alike += key in seen
            if key not in seen:
                passes.append(stacked)
            seen.add(key)
    source = str(files[0].parent)
    if layers is None or not passes:
        raise TraceError(source, "tokens", "no iteration has the same tokens in all layers", _AGAIN)
    known = Hints(layer_ids=tuple(range(len(layers))), model=hints.model, dataset=hints.dataset)
    imported = trace_of_requests([RoutedRequest(topk_ids=ids) for ids in passes], known, num_experts=num_experts, source=source)
    notes = ["TensorRT-LLM names neither requests nor phases: each token counts as a request"]
    if dropped:
        notes.append(f"{dropped} iterations left out: their layers saw different numbers of tokens")
    if alike:
        notes.append(f"{alike} iterations were recorded by several ranks alike and count once")
    return Imported(trace=replace(imported.trace, layer_ids=layers, request_ids=None), notes=tuple(notes))


def _tensors(path: Path, dimensions: int) -> dict[tuple[int, int], npt.NDArray[np.int64]]:
    """(iteration, layer) -> whole numbers, of keys `"{iteration}_{layer}"`."""
    found = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                iteration, _, layer = key.partition("_")
                view = file.get_slice(key)
                if not (iteration.isdecimal() and layer.isdecimal() and len(key) < 24 and int(layer) < MAX_LAYERS):
                    raise TraceError(str(path), key, "not ITERATION_LAYER", _AGAIN)
                if len(view.get_shape()) != dimensions or view.get_dtype() not in ("I64", "I32", "I16"):
                    raise TraceError(str(path), key, f"{view.get_dtype()} {view.get_shape()} is not whole numbers of {dimensions}d", _AGAIN)
                if np.prod(view.get_shape(), dtype=float) > MAX_ELEMENTS:
                    raise TraceError(str(path), key, "over the limit", "record fewer iterations")
                found[int(iteration), int(layer)] = file.get_tensor(key).astype(np.int64)
    except (SafetensorError, OSError, ValueError) as error:
        raise TraceError(str(path), "file", f"not a whole safetensors file ({error})", _AGAIN) from error
    return found
