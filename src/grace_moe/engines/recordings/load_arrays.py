"""Arrays of loads in the files of NumPy and safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from grace_moe.engines.recordings.dumps import MAX_BYTES, npy_array, read_npz
from grace_moe.errors import TraceError
from grace_moe.files import check_safetensors, parse_json, read_bytes

_WHOLE = ("I64", "I32", "I16", "U8", "F64", "F32", "F16")
ALONE = "expert_load"
"""What the array of a `.npy` is taken for."""


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The numbers of a `.npy` (as `ALONE`), `.npz` or `.safetensors` file, floats too; `layer_ids` of safetensors' metadata among them.

    Raises:
        TraceError: not such a file.
    """
    if path.suffix == ".npy":
        return {ALONE: npy_array(read_bytes(path, TraceError, MAX_BYTES), str(path), "iuf")}
    if path.suffix == ".npz":
        return read_npz(path, "iuf")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    raise TraceError(str(path), "file", "none of .csv, .json, .jsonl, .npy, .npz and .safetensors", "say by its name what it is")


def _read_safetensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    check_safetensors(path, TraceError)
    try:
        with safe_open(path, framework="numpy") as file:
            names = [name for name in file.keys() if file.get_slice(name).get_dtype() in _WHOLE]  # noqa: SIM118 (not a dict)
            arrays = {name: file.get_tensor(name) for name in names}
            told = (file.metadata() or {}).get("layer_ids")
    except (SafetensorError, OSError, ValueError) as error:
        raise TraceError(str(path), "file", f"not a whole safetensors file ({error})", "copy or record it again") from error
    if told is not None:
        value = parse_json(told.encode(), TraceError, str(path), "layer_ids")
        try:
            arrays["layer_ids"] = np.array(value, dtype=np.int64)
        except (ValueError, TypeError, OverflowError) as error:
            raise TraceError(str(path), "layer_ids", "not a JSON list of numbers", "give the model's own numbers of its layers") from error
    return arrays
