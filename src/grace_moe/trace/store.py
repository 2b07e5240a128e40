"""The trace file: safetensors with string metadata, version 1 (docs/formats.md). Knows fields, not `RoutingTrace`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from grace_moe.errors import TraceError
from grace_moe.files import MAX_EXPERTS, MAX_LAYER_ID, MAX_LAYERS, check_budget, check_safetensors, write_atomically

FORMAT = "grace-moe.trace"
VERSION = 1
MAX_ELEMENTS = 2**33
_DTYPES = {"topk_ids": ("I16", "I32"), "request_ids": ("I32",), "phase": ("U8",), "topk_weights": ("F16",), "token_ids": ("I32",)}


def read_fields(path: Path) -> dict[str, Any]:
    """The fields of a `RoutingTrace` in a file, and `counts_only`: its arrays, and what its metadata says; sizes are checked before use.

    Raises:
        TraceError: missing, truncated, of another format or a newer version, or out of range.
    """
    source = str(path)
    if not path.exists():
        raise TraceError(source, "file", "no such file", "check the path")
    size = check_safetensors(path, TraceError)
    tensors, metadata = _read(path)
    if "topk_ids" not in tensors:
        raise TraceError(source, "topk_ids", "missing", "record it again")
    num_experts, layer_ids = _integer(source, metadata, "num_experts"), _layer_ids(source, metadata)
    check_budget(8 * min(num_experts, MAX_EXPERTS) * len(layer_ids), size, kind=TraceError, source=source, field="num_experts x layers")
    return {
        **tensors,
        "num_experts": num_experts,
        "layer_ids": layer_ids,
        "model": metadata.get("model", ""),
        "dataset": metadata.get("dataset", ""),
        "counts_only": metadata.get("counts_only") == "true",
        "surrogate": metadata.get("surrogate") == "true",
        "source": source,
    }


def write_fields(fields: dict[str, Any], path: Path) -> None:
    """Write a trace's fields whole, or nothing; the same fields give the same bytes. Arrays may be left out, and flags that are not set."""
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "num_experts": str(fields["num_experts"]),
        "model": fields["model"],
        "dataset": fields["dataset"],
        "layer_ids": json.dumps(list(fields["layer_ids"])),
        **{name: "true" for name in ("counts_only", "surrogate") if fields.get(name)},
    }
    present = {name: np.ascontiguousarray(fields[name]) for name in _DTYPES if fields.get(name) is not None}
    write_atomically(path, _stable(save(present, metadata=metadata)))


def _read(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Tensors and metadata of the file."""
    source = str(path)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            _check_format(source, metadata)
            tensors = {}
            for name in file.keys():  # noqa: SIM118 (not a dict)
                view = file.get_slice(name) if name in _DTYPES else None
                _check_tensor(source, name, view)
                tensors[name] = file.get_tensor(name)
            return tensors, metadata
    except (SafetensorError, OSError, ValueError) as error:
        mend = "it may be truncated: copy or record it again"
        raise TraceError(source, "file", f"not a whole safetensors file ({error})", mend) from error


def _check_tensor(source: str, name: str, view: Any) -> None:
    """`view`: safetensors' slice of it, which tells dtype and shape without reading; None = not a tensor of a trace."""
    if view is None:
        raise TraceError(source, name, "unknown tensor", f"a trace has only {', '.join(_DTYPES)}")
    if view.get_dtype() not in _DTYPES[name]:
        raise TraceError(source, name, f"dtype {view.get_dtype()} is not {' or '.join(_DTYPES[name])}", "record it again")
    shape = view.get_shape()
    if np.prod(shape, dtype=float) > MAX_ELEMENTS:
        raise TraceError(source, name, f"shape {shape} is over the limit", "split the trace")
    if 0 in shape[1:]:  # else no byte would bound the number of tokens
        raise TraceError(source, name, f"shape {shape} has no layers or no choices", "record it again")


def _stable(data: bytes) -> bytes:
    """safetensors writes metadata in hash order: write its header again with sorted keys."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _check_format(source: str, metadata: dict[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        found = metadata.get("format", "none")
        raise TraceError(source, "format", f"{found!r} is not {FORMAT!r}", "give a trace that `grace-moe record` or `import` wrote")
    version = _integer(source, metadata, "version")
    if version < 1:
        raise TraceError(source, "version", f"{version} never was", "record it again")
    if version > VERSION:
        raise TraceError(source, "version", f"{version} is newer than {VERSION}", "upgrade grace-moe")


def _integer(source: str, metadata: dict[str, str], field: str) -> int:
    try:
        return int(metadata[field])
    except (KeyError, ValueError) as error:
        raise TraceError(source, field, "missing or not a whole number", "record it again") from error


def _layer_ids(source: str, metadata: dict[str, str]) -> tuple[int, ...]:
    text = metadata.get("layer_ids", "")
    if text.count(",") >= MAX_LAYERS:
        raise TraceError(source, "layer_ids", f"over the limit of {MAX_LAYERS} layers", "is it the right file?")
    try:
        ids = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TraceError(source, "layer_ids", "missing or not a JSON list", "record it again") from error
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i <= MAX_LAYER_ID for i in ids):
        raise TraceError(source, "layer_ids", "not a list of layer numbers", "record it again")
    return tuple(ids)
