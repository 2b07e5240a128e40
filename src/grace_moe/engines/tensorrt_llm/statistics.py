"""TensorRT-LLM: expert statistics in. Layers have the model's own numbers."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from grace_moe.engines.recordings.counts import profile_of_counts
from grace_moe.engines.recordings.dumps import MAX_ELEMENTS
from grace_moe.engines.recordings.imported import Hints, Imported
from grace_moe.engines.recordings.notes import counted, several
from grace_moe.engines.recordings.same_passes import repeated_passes
from grace_moe.engines.recordings.tokens import Tokens, trace_of_tokens
from grace_moe.engines.slot_tables import MAX_LAYERS
from grace_moe.errors import InputFileError, TraceError
from grace_moe.files import bounded_counts, check_safetensors, read_json

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
            counts = bounded_counts(counts, kind=TraceError, source=str(path), field=f"layer {layer}")
            total[layer] = total.get(layer, np.zeros(experts, dtype=np.int64)) + counts
    layers = tuple(sorted(total))
    if not layers:
        raise TraceError(str(folder), "layers", "none has counts", _AGAIN)
    return profile_of_counts(np.stack([total[layer] for layer in layers]), hints, str(folder), layer_ids=layers)


def _import_raw(files: Sequence[Path], hints: Hints, num_experts: int) -> Imported:
    """Tokens of each rank and iteration, where all layers saw the same number of them."""
    ranks: list[dict[int, dict[int, npt.NDArray[np.int64]]]] = []
    for path in files:
        by_iteration: dict[int, dict[int, npt.NDArray[np.int64]]] = defaultdict(dict)
        for (iteration, layer), ids in _tensors(path, 2).items():
            by_iteration[iteration][layer] = ids
        ranks.append(by_iteration)
    source = str(files[0].parent)
    layers = _layers(ranks, hints)
    repeated = repeated_passes([{iteration: _digest(chosen) for iteration, chosen in rank.items()} for rank in ranks])
    kept = [chosen for rank, again in zip(ranks, repeated, strict=True) for it, chosen in sorted(rank.items()) if it not in again]
    whole = [chosen for chosen in kept if set(layers) <= set(chosen) and len({chosen[layer].shape for layer in layers}) == 1]
    if not whole:
        raise TraceError(source, "tokens", "no iteration has the same tokens in all layers", _AGAIN)
    passes = [np.stack([chosen[layer] for layer in layers], axis=1) for chosen in whole]
    if len({ids.shape[2] for ids in passes}) > 1:
        raise TraceError(source, "k", "iterations differ in it", "import one model at a time")
    tokens = Tokens(topk_ids=np.concatenate(passes), num_experts=num_experts, source=source, layer_ids=layers)
    imported = trace_of_tokens(tokens, hints)
    notes = ["TensorRT-LLM names neither requests nor phases: each token counts as a request"]
    if dropped := len(kept) - len(whole):
        lost = sum(max(len(ids) for ids in chosen.values()) for chosen in kept if not any(chosen is one for one in whole))
        what = f"{several(dropped, 'iteration')} of up to {several(lost, 'token')}"
        notes.append(f"{what} left out: their layers saw different numbers of tokens")
    if alike := sum(map(len, repeated)):
        notes.append(f"{several(alike, 'iteration')} {counted(alike, 'was', 'were')} recorded by several ranks alike: counted once")
    return Imported(trace=imported.trace, notes=(*imported.notes, *notes))


def _layers(ranks: Sequence[dict[int, dict[int, npt.NDArray[np.int64]]]], hints: Hints) -> tuple[int, ...]:
    """The layers that most iterations have, of those that the model has experts in."""
    found = Counter(tuple(sorted(chosen)) for rank in ranks for chosen in rank.values())
    most = max(found, key=lambda layers: (found[layers], len(layers)), default=())
    return most if hints.layer_ids is None else tuple(layer for layer in most if layer in hints.layer_ids)


def _digest(chosen: dict[int, npt.NDArray[np.int64]]) -> str:
    """Of all that a rank recorded in an iteration."""
    sha = hashlib.sha256()
    for layer, ids in sorted(chosen.items()):
        sha.update(f"{layer} {ids.shape}".encode() + ids.tobytes())
    return sha.hexdigest()


def _tensors(path: Path, dimensions: int) -> dict[tuple[int, int], npt.NDArray[np.int64]]:
    """(iteration, layer) -> whole numbers, of keys `"{iteration}_{layer}"`."""
    found = {}
    check_safetensors(path, TraceError)
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
