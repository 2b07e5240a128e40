"""One budget of memory for every reader: a small file may not ask for much, a large one for a multiple of its size."""

from __future__ import annotations

from grace_moe.errors import InputFileError

FREE_BYTES = 24 * 2**20
"""That a file of any size may ask for."""
BYTES_PER_BYTE = 10
"""That a file may ask for besides, for each byte of its own: a compressed array of 64-bit expert ids needs 8 to 10."""


def budget_of(file_bytes: int) -> int:
    """Bytes of memory that a file of this size may ask for."""
    return FREE_BYTES + BYTES_PER_BYTE * file_bytes


def check_budget(wanted: int, file_bytes: int, *, kind: type[InputFileError], source: str, field: str) -> None:
    """Refuse a file that asks for more memory than its size warrants. Call it before the memory is allocated.

    Args:
        wanted: bytes that what the file says would take.
        file_bytes: size of the file.
        kind: error to raise.

    Raises:
        InputFileError: (of the given kind) over `budget_of(file_bytes)`.
    """
    allowed = budget_of(file_bytes)
    if wanted > allowed:
        problem = f"asks for {_mebibytes(wanted)} of memory, and a file of {file_bytes} bytes gets {_mebibytes(allowed)}"
        raise kind(source, field, problem, "is it the right file? If so, write it uncompressed and indented, or split it")


def _mebibytes(size: int) -> str:
    return f"{size // 2**20:,} MiB" if size < 2**60 else "over 2^40 MiB"
