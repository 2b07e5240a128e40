"""NumPy's files from outside: arrays of whole numbers, within the budget of their file's size, and never a pickle."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.errors import TraceError
from grace_moe.files import check_budget, open_regular, read_bytes

MAX_BYTES = 32 * 2**30
"""Of a dump, unpacked."""
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 2**33
_AGAIN = "it may be truncated, or of another kind: copy or record it again"


def npy_array(data: bytes | bytearray, source: str, kinds: str = "iu") -> npt.NDArray[Any]:
    """An array of whole numbers from the bytes of a `.npy` file, as a view of them; its header may not claim more than is there.

    Args:
        kinds: NumPy's letters for the kinds of numbers that are taken; with "f", floats too.

    Raises:
        TraceError: not a `.npy`, not whole numbers, or of another size than its header says.
    """
    stream = io.BytesIO(memoryview(data)[:65_536])
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except Exception as error:  # numpy's parser raises many kinds on a damaged header
        raise TraceError(source, "file", f"not a .npy array ({error})", _AGAIN) from error
    if len(shape) > MAX_DIMENSIONS or any(size < 0 for size in shape) or (0 in shape and max(shape) > MAX_ELEMENTS):
        raise TraceError(source, "shape", f"{shape} is not a shape of up to {MAX_DIMENSIONS} dimensions", _AGAIN)
    if dtype.kind not in kinds:
        raise TraceError(source, "dtype", f"{dtype} are not {'numbers' if 'f' in kinds else 'whole numbers'}", "give the expert ids")
    rest = len(data) - stream.tell()
    if math.prod(shape) * dtype.itemsize != rest:
        raise TraceError(source, "shape", f"{shape} of {dtype} is not {rest} bytes", _AGAIN)
    array = np.frombuffer(data, dtype=dtype, offset=stream.tell()) if rest else np.empty(0, dtype)
    return array.reshape(shape, order="F" if fortran else "C")


def read_npy(path: Path) -> npt.NDArray[np.integer[Any]]:
    """An array of whole numbers from a `.npy` file. Raises TraceError."""
    return npy_array(read_bytes(path, TraceError, MAX_BYTES), str(path))


def read_npz(path: Path, kinds: str = "iu") -> dict[str, npt.NDArray[Any]]:
    """The arrays of whole numbers (`kinds`: see `npy_array`) in a `.npz` file.

    Raises:
        TraceError: not one, damaged, or unpacking to more than its size warrants.
    """
    arrays = {}
    with open_regular(path, TraceError) as (file, size):
        try:
            with zipfile.ZipFile(file) as archive:
                check_archive(path, archive, size)
                for entry in archive.infolist():
                    if entry.filename.endswith(".npy"):
                        arrays[entry.filename.removesuffix(".npy")] = npy_array(
                            _unpacked(archive, entry), f"{path}: {entry.filename}", kinds
                        )
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
            raise TraceError(str(path), "file", f"not a whole .npz ({error})", _AGAIN) from error  # RuntimeError: of a password
    return arrays


def check_archive(path: Path, archive: zipfile.ZipFile, size: int) -> None:
    """Raise TraceError unless all members are stored or deflated, and unpack to what a file of `size` bytes may ask for."""
    entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > MAX_BYTES:
        raise TraceError(str(path), "size", f"unpacks to over the limit of {MAX_BYTES} bytes", "split it")
    check_budget(unpacked, size, kind=TraceError, source=str(path), field="size unpacked")
    for entry in entries:
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            problem = f"compressed in a way that neither NumPy nor torch writes ({entry.compress_type})"
            raise TraceError(str(path), entry.filename, problem, "write it with numpy.savez or torch.save")


def _unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytearray:
    """A member's bytes, in memory once."""
    data, filled = bytearray(entry.file_size), 0
    with archive.open(entry) as member:
        while piece := member.read(2**20):  # to the end, where its checksum is compared
            data[filled : filled + len(piece)] = piece
            filled += len(piece)
    if filled != entry.file_size:
        raise EOFError(f"{entry.filename} has {filled} bytes instead of {entry.file_size}")
    return data
