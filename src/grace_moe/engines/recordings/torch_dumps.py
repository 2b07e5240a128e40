"""What `torch.save` wrote, from outside: plain containers and tensors, looked through before torch loads them.

torch's own `weights_only` keeps code from running, but not memory from being asked for: `bytearray(n)` is allowed, a tensor may be a view
of one number, and lists may hold one another many times over.
"""

from __future__ import annotations

import importlib.util
import io
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from grace_moe.engines.recordings.dumps import check_archive
from grace_moe.errors import MissingExtraError, TraceError
from grace_moe.files import budget_of, check_budget, open_regular

_PLAIN = re.compile(
    r"torch\._utils _rebuild_tensor_v2|collections OrderedDict|_codecs encode|torch (\w+Storage|Size|device|bool|b?float\d+|u?int\d+)"
)
"""What a pickle of plain data names: tensors and their storages, shapes, types and devices, and bytes."""
_CONTAINERS = ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "LIST", "DICT", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE", "NEWOBJ")
_CONTAINER_BYTES, _PUT_BYTES, _OTHER_BYTES = 120, 100, 40
"""What the unpickler takes for a container, an entry of its memo, and any other step, as measured on 64 bits."""
_AGAIN = "it may be truncated, or of another kind: copy or record it again"


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote, tensors on CPU: plain containers, numbers, text and tensors only.

    Raises:
        TraceError: missing, damaged, asking for more memory than its size warrants, or holding anything else.
        MissingExtraError: torch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError("torch", "runtime")
    import torch

    with open_regular(path, TraceError) as (file, size):
        try:
            value = torch.load(_checked(path, file, size), map_location="cpu", weights_only=True)
        except (TraceError, OSError):
            raise
        except Exception as error:  # torch and its unpickler raise many kinds on a damaged file
            raise TraceError(str(path), "file", f"torch can't load it as plain data ({error})", _AGAIN) from error
    _check_plain(path, value, size)
    return value


def torch_integers(value: Any, source: str, field: str, dimensions: int) -> npt.NDArray[np.integer[Any]]:
    """A tensor of whole numbers, signed: in its own type, or as int64. Raises TraceError: anything else, or other dimensions."""
    import torch

    if not isinstance(value, torch.Tensor) or value.dim() != dimensions or value.is_floating_point() or value.is_complex():
        found = f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise TraceError(source, field, f"{found} is not a tensor of whole numbers with {dimensions} dimensions", _AGAIN)
    array: npt.NDArray[Any] = value.numpy()
    return array if array.dtype.kind == "i" else array.astype(np.int64)


def torch_numbers(value: Any, source: str, field: str) -> npt.NDArray[Any]:
    """A tensor of whole numbers or floats, of any dimensions. Raises TraceError: anything else."""
    import torch

    if not isinstance(value, torch.Tensor) or value.is_complex() or value.dtype is torch.bool:
        found = f"{value.dtype}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise TraceError(source, field, f"{found} is not a tensor of numbers", _AGAIN)
    array: npt.NDArray[Any] = (value.float() if value.is_floating_point() else value).numpy()
    return array


def _checked(path: Path, file: BinaryIO, size: int) -> io.BytesIO:
    """The archive, written again of the members that were looked through: torch's own reader may find others in the same bytes.

    Raises:
        TraceError: it unpacks to too much, or a pickle in it names what plain data does not, or asks for too much.
    """
    stream = io.BytesIO()
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(stream, "w") as again:
        check_archive(path, archive, size)
        entries = archive.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > size or len({entry.filename.lower() for entry in entries}) < len(entries):
            raise TraceError(str(path), "members", "compressed, or a name is there twice", "write it with torch.save as it is")
        for entry in entries:
            with archive.open(entry) as member:
                data = member.read()
            if entry.filename.lower().endswith("data.pkl"):
                _check_pickle(path, entry.filename, data, size)
            again.writestr(entry.filename, data)
    stream.seek(0)
    return stream


def _check_pickle(path: Path, name: str, data: bytes, size: int) -> None:
    wanted = 0
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("GLOBAL", "INST") and not _PLAIN.fullmatch(str(argument)):
            raise TraceError(str(path), name, f"names {str(argument).replace(' ', '.')}", "give plain data: numbers, text, tensors")
        if opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4") or (opcode.name == "PROTO" and argument != 2):
            raise TraceError(str(path), name, "of another pickle protocol than torch's", "write it with torch.save as it is")
        wanted += _bytes_of(opcode.name)
    check_budget(wanted, size, kind=TraceError, source=str(path), field=name)


def _bytes_of(opcode: str) -> int:
    if opcode in _CONTAINERS:
        return _CONTAINER_BYTES
    return _PUT_BYTES if opcode.endswith("PUT") or opcode == "MEMOIZE" else _OTHER_BYTES


def _check_plain(path: Path, value: Any, size: int) -> None:
    """Raise TraceError where what was loaded, with all that is in it several times over, is more than the file's size warrants."""
    import torch

    wanted, allowed, stack = 0, budget_of(size), [value]
    while stack:
        item = stack.pop()
        if isinstance(item, torch.Tensor):
            wanted += _bytes_of_tensor(path, item)
        elif isinstance(item, dict):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple, set)):
            stack += item
        wanted += _OTHER_BYTES
        if wanted > allowed:
            check_budget(wanted, size, kind=TraceError, source=str(path), field="what it holds")


def _bytes_of_tensor(path: Path, tensor: Any) -> int:
    import torch

    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise TraceError(
            str(path), "tensor", f"{tensor.layout} on {tensor.device} holds no plain numbers", "write plain tensors on the CPU"
        )
    shown: int = tensor.numel() * tensor.element_size()
    if shown > tensor.untyped_storage().nbytes():
        problem = f"{list(tensor.shape)} shows more numbers than it has: a view over the limit"
        raise TraceError(str(path), "tensor", problem, "write it with .contiguous()")
    return shown if tensor.dtype.is_signed else 8 * int(tensor.numel())  # `torch_integers` makes it int64
