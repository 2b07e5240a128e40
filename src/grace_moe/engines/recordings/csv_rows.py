"""Rows of numbers in CSV files that may be several, one after the other, each with its header."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from grace_moe.errors import TraceError
from grace_moe.files import open_regular

MAX_CSV_BYTES = 2 * 2**30
"""Of a file."""
_LINE_BYTES = 65_536
_ROWS = 65_536
"""That are read as numbers together: as text they take ten times as much memory."""
_MOST = 2.0**53
"""Beyond it, floating point has not every whole number."""


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
    source = str(path)
    header: tuple[str, ...] | None = None
    starts: list[int] = []
    tables: list[npt.NDArray[np.float64]] = []
    rows: list[bytes] = []
    with open_regular(path, TraceError) as (file, size):
        for line in _lines(file, size, source):
            if not _is_header(line):
                rows.append(line)
                if len(rows) == _ROWS:
                    tables.append(_table(rows, source))
                    rows = []
                continue
            words = tuple(word.strip().strip('"').lower() for word in line.decode("utf-8", "replace").split(","))
            if header not in (None, words):
                raise TraceError(source, "header", f"{','.join(words)[:80]} after {','.join(header or ())[:80]}", "import them one by one")
            header = words
            starts.append(_ROWS * len(tables) + len(rows))
    table = _joined([*tables, *([_table(rows, source)] if rows or not tables else [])], source)
    if header is not None and table.shape[1] != len(header):
        raise TraceError(source, "rows", f"{table.shape[1]} columns, and the header has {len(header)}", "check what wrote it")
    return Rows(table=table, header=header, starts=tuple(starts), file_bytes=size)


def _lines(file: BinaryIO, size: int, source: str) -> Iterator[bytes]:
    """The lines that are not empty, of a file that had so many bytes when it was opened."""
    if size > MAX_CSV_BYTES:
        raise TraceError(source, "size", f"over the limit of {MAX_CSV_BYTES} bytes", "split it")
    while size > 0 and (line := file.readline(_LINE_BYTES)):
        size -= len(line)
        if len(line) == _LINE_BYTES:
            raise TraceError(source, "rows", f"a line of {_LINE_BYTES} bytes or more", "check what wrote it")
        if line.strip():
            yield line


def _joined(tables: list[npt.NDArray[np.float64]], source: str) -> npt.NDArray[np.float64]:
    if len({table.shape[1] for table in tables}) > 1:
        raise TraceError(source, "rows", "of different numbers of columns", "check what wrote it")
    return np.concatenate(tables) if len(tables) > 1 else tables[0]


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
    if not (np.abs(table) <= _MOST).all():  # also of what is no number
        raise TraceError(source, "rows", "not all are finite numbers up to 2^53", "check what wrote it")
    return table
