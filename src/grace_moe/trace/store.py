"""The trace file: safetensors with string metadata, version 1 (DESIGN.md, Files)."""

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from grace_moe.errors import TraceError
from grace_moe.files import write_atomically
from grace_moe.trace.model import RoutingTrace

FORMAT = "grace-moe.trace"
VERSION = 1
MAX_ELEMENTS = 2**33
MAX_LAYER_ID = 100_000
_DTYPES = {"topk_ids": ("I16", "I32"), "request_ids": ("I32",), "phase": ("U8",), "topk_weights": ("F16",)}


def load_trace(path: Path) -> RoutingTrace:
    """Read a trace; every size and id is checked before use.

    Raises:
        TraceError: missing, truncated, of another format or a newer version, or out of range.
    """
    source = str(path)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            _check_format(source, metadata)
            tensors = {}
            for name in file.keys():  # noqa: SIM118 (not a dict)
                if name not in _DTYPES:
                    raise TraceError(source, name, "unknown tensor", f"a trace has only {', '.join(_DTYPES)}")
                view = file.get_slice(name)
                if view.get_dtype() not in _DTYPES[name]:
                    raise TraceError(source, name, f"dtype {view.get_dtype()} is not {' or '.join(_DTYPES[name])}", "record it again")
                shape = view.get_shape()
                if np.prod(shape, dtype=float) > MAX_ELEMENTS:
                    raise TraceError(source, name, f"shape {shape} is over the limit", "split the trace")
                if 0 in shape[1:]:  # else no byte would bound the number of tokens
                    raise TraceError(source, name, f"shape {shape} has no layers or no choices", "record it again")
                tensors[name] = file.get_tensor(name)
    except FileNotFoundError as error:
        raise TraceError(source, "file", "no such file", "check the path") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise TraceError(
            source, "file", f"not a whole safetensors file ({error})", "it may be truncated: copy or record it again"
        ) from error
    if "topk_ids" not in tensors:
        raise TraceError(source, "topk_ids", "missing", "record it again")
    return RoutingTrace(
        **tensors,
        num_experts=_integer(source, metadata, "num_experts"),
        layer_ids=_layer_ids(source, metadata),
        model=metadata.get("model", ""),
        dataset=metadata.get("dataset", ""),
        counts_only=metadata.get("counts_only") == "true",
        source=source,
    )


def save_trace(trace: RoutingTrace, path: Path) -> None:
    """Write a trace; the same trace gives the same bytes."""
    tensors = {name: getattr(trace, name) for name in _DTYPES}
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "num_experts": str(trace.num_experts),
        "model": trace.model,
        "dataset": trace.dataset,
        "layer_ids": json.dumps(list(trace.layer_ids)),
        **({"counts_only": "true"} if trace.counts_only else {}),
    }
    present = {name: np.ascontiguousarray(array) for name, array in tensors.items() if array is not None}
    write_atomically(path, _stable(save(present, metadata=metadata)))


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
    try:
        ids = json.loads(metadata["layer_ids"])
    except (KeyError, ValueError, RecursionError) as error:
        raise TraceError(source, "layer_ids", "missing or not a JSON list", "record it again") from error
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < MAX_LAYER_ID for i in ids):
        raise TraceError(source, "layer_ids", "not a list of layer numbers", "record it again")
    return tuple(ids)
