"""Rows of numbers in CSV files that may be several, one after the other, each with its header."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from grace_moe.errors import TraceError
from grace_moe.files import read_bytes

MAX_CSV_BYTES = 2 * 2**30
"""Of a file."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The numbers of a file."""

    table: npt.NDArray[np.float64]
    """`[rows, columns]`"""
    header: tuple[str, ...] | None
    """Names of the columns in lower case; None = there are none."""
    starts: tuple[int, ...]
    """Rows before which a header came: more than one where files were joined."""
    file_bytes: int


def read_rows(path: Path) -> Rows:
    """The numbers of a CSV file. The header may come again: files joined with `cat`.

    Raises:
        TraceError: not such a file.
    """
    source, data = str(path), read_bytes(path, TraceError, MAX_CSV_BYTES)
    header: tuple[str, ...] | None = None
    rows: list[bytes] = []
    starts: list[int] = []
    for line in data.splitlines():
        if not line.strip():
            continue
        if not _is_header(line):
            rows.append(line)
            continue
        words = tuple(word.strip().strip('"').lower() for word in line.decode("utf-8", "replace").split(","))
        if header not in (None, words):
            raise TraceError(source, "header", f"{','.join(words)[:80]} after {','.join(header or ())[:80]}", "import them one by one")
        header = words
        starts.append(len(rows))
    table = _table(rows, source)
    if header is not None and table.shape[1] != len(header):
        raise TraceError(source, "rows", f"{table.shape[1]} columns, and the header has {len(header)}", "check what wrote it")
    return Rows(table=table, header=header, starts=tuple(starts), file_bytes=len(data))


def _is_header(line: bytes) -> bool:
    first = line.lstrip()[:1]
    return first.isalpha() or first == b'"'


def _table(rows: list[bytes], source: str) -> npt.NDArray[np.float64]:
    if not rows:
        raise TraceError(source, "rows", "none", "record some requests")
    try:
        table = np.loadtxt(rows, delimiter=",", dtype=np.float64, ndmin=2, encoding="latin-1")
    except ValueError as error:
        raise TraceError(source, "rows", f"not numbers in columns ({error})", "check what wrote it") from error
    if not np.isfinite(table).all():
        raise TraceError(source, "rows", "not all are finite numbers", "check what wrote it")
    return table
