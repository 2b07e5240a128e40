"""What the header of a safetensors file makes its reader hold, before safetensors reads it."""

from __future__ import annotations

from pathlib import Path

from grace_moe.errors import InputFileError
from grace_moe.files.budget import check_budget
from grace_moe.files.reading import open_regular

_KEY_BYTES = 330
"""What safetensors and Python take for a key of the header, as measured on 64 bits."""


def check_safetensors(path: Path, kind: type[InputFileError]) -> int:
    """The size in bytes of a file that safetensors will open.

    Raises:
        InputFileError: (of the given kind) missing, not a regular file, or its header asks for more memory than its size warrants.
    """
    with open_regular(path, kind) as (file, size):
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes <= size - 8:  # else safetensors says what is wrong
            keys = file.read(header_bytes).count(b":")
            check_budget(_KEY_BYTES * keys, size, kind=kind, source=str(path), field="header")
    return size
