"""Reading what an engine left behind: arrays and JSON from outside, with bounds, and never a pickle that can run code."""

from __future__ import annotations

import base64
import binascii
import importlib.util
import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.errors import MissingExtraError, TraceError
from grace_moe.files import MAX_JSON_BYTES, read_json

MAX_BYTES = 32 * 2**30
"""Of a dump, unpacked."""
MAX_ELEMENTS = 2**33
_AGAIN = "it may be truncated, or of another kind: copy or record it again"


def npy_array(data: bytes, source: str) -> npt.NDArray[np.integer[Any]]:
    """An array of whole numbers from the bytes of a `.npy` file; its header may not claim more than is there.

    Raises:
        TraceError: not a `.npy`, not whole numbers, or of another size than its header says.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except Exception as error:  # numpy's parser raises many kinds on a damaged header
        raise TraceError(source, "file", f"not a .npy array ({error})", _AGAIN) from error
    if any(size < 0 for size in shape):
        raise TraceError(source, "shape", f"{shape} is not a shape", _AGAIN)
    if dtype.kind not in "iu":
        raise TraceError(source, "dtype", f"{dtype} are not whole numbers", "give the expert ids")
    count, rest = 1, data[stream.tell() :]
    for size in shape:
        count *= size
    if count * dtype.itemsize != len(rest):
        raise TraceError(source, "shape", f"{shape} of {dtype} is not {len(rest)} bytes", _AGAIN)
    array = np.frombuffer(rest, dtype=dtype)
    return array.reshape(shape, order="F" if fortran else "C")


def read_npy(path: Path) -> npt.NDArray[np.integer[Any]]:
    """An array of whole numbers from a `.npy` file. Raises TraceError."""
    return npy_array(read_bytes(path), str(path))


def read_npz(path: Path) -> dict[str, npt.NDArray[np.integer[Any]]]:
    """The arrays of whole numbers in a `.npz` file. Raises TraceError: not one, damaged, or over the limit of `MAX_BYTES`."""
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            _check_size(path, archive)
            for name in archive.namelist():
                if name.endswith(".npy"):
                    arrays[name.removesuffix(".npy")] = npy_array(archive.read(name), f"{path}: {name}")
    except OSError as error:
        raise TraceError(str(path), "file", str(error.strerror or error), "check the path") from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:  # an unknown method, a password
        raise TraceError(str(path), "file", f"not a whole .npz ({error})", _AGAIN) from error
    return arrays


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote, tensors on CPU: plain containers, numbers, text and tensors only (`weights_only`).

    Raises:
        TraceError: missing, damaged, over the limit, or holding anything else.
        MissingExtraError: torch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError("torch", "runtime")
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            _check_size(path, archive)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise TraceError(str(path), "file", str(error.strerror or error), "check the path") from error
    except TraceError:
        raise
    except Exception as error:  # torch and its unpickler raise many kinds on a damaged file
        raise TraceError(str(path), "file", f"torch can't load it as plain data ({error})", _AGAIN) from error


def torch_integers(value: Any, source: str, field: str, dimensions: int) -> npt.NDArray[np.int64]:
    """A tensor of whole numbers as int64. Raises TraceError: anything else, other dimensions, over the limit."""
    import torch

    if not isinstance(value, torch.Tensor) or value.dim() != dimensions or value.is_floating_point() or value.is_complex():
        found = f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise TraceError(source, field, f"{found} is not a tensor of whole numbers with {dimensions} dimensions", _AGAIN)
    if value.layout is not torch.strided or value.is_quantized or value.numel() > MAX_ELEMENTS:  # also of an expanded view
        raise TraceError(source, field, f"a tensor {list(value.shape)} is over the limit, or of another kind", "split the dump")
    array: npt.NDArray[np.int64] = value.to(torch.int64).numpy()
    return array


def read_objects(paths: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) of each JSON object in files of one object, a list, or a line each (`.jsonl`).

    Raises:
        TraceError: missing, too large, or not JSON.
    """
    for path in paths:
        if path.suffix != ".jsonl":
            value = read_json(path, TraceError)
            for index, item in enumerate(value if isinstance(value, list) else [value]):
                yield f"{path}: {index}", _object(f"{path}: {index}", item)
            continue
        for number, line in enumerate(read_bytes(path).splitlines(), start=1):
            if not line.strip():
                continue
            where = f"{path}: line {number}"
            try:
                yield where, _object(where, json.loads(line))
            except (ValueError, RecursionError) as error:
                raise TraceError(where, "line", f"not valid JSON ({error})", "write one response a line") from error


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """All of a file. Raises TraceError: missing, or over the limit."""
    try:
        if path.stat().st_size > limit:
            raise TraceError(str(path), "size", f"over the limit of {limit} bytes", "split it")
        return path.read_bytes()
    except OSError as error:
        raise TraceError(str(path), "file", str(error.strerror), "check the path") from error


def base64_bytes(text: Any, source: str, field: str) -> bytes:
    """The bytes behind base64 text. Raises TraceError: not text, or not base64."""
    if not isinstance(text, str) or len(text) > MAX_JSON_BYTES:
        raise TraceError(source, field, f"{type(text).__name__} is not base64 text", "ask the engine to return the routed experts")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise TraceError(source, field, f"not base64 ({error})", "it may be truncated: ask again") from error


def _check_size(path: Path, archive: zipfile.ZipFile) -> None:
    if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
        raise TraceError(str(path), "size", f"unpacks to over the limit of {MAX_BYTES} bytes", "split it")


def _object(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TraceError(where, "response", f"{type(value).__name__} is not an object", "give the engine's responses as they came")
    return value
