"""Tables of measured times as CSV: which kind one is, and its columns with every row checked."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.errors import InputFileError
from grace_moe.files import read_bytes

MAX_TABLE_BYTES = 256 * 2**20
_MOST = 1e15

KINDS: Mapping[str, Sequence[str]] = {
    "deepep_high_throughput": ("hidden_size", "num_token", "num_topk", "num_experts", "dispatch_transmit_us", "combine_transmit_us"),
    "deepep_low_latency": ("hidden_size", "num_token", "num_topk", "num_experts", "dispatch_avg_t_us", "combine_avg_t_us"),
    "experts": ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_ep_size", "distribution", "latency"),
    "nccl": ("op_name", "num_gpus", "message_size", "latency"),
}
"""Kinds of tables, by the columns that each must have (docs/cost.md#calibrate). Others may be there or not."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """One file."""

    kind: str
    """One of `KINDS`."""
    source: str
    columns: Mapping[str, Sequence[str]]
    """Text, by name."""
    line: Sequence[int]
    """`[rows]` line of the file, for messages."""

    def __len__(self) -> int:
        return len(self.line)

    def text(self, name: str, default: str = "") -> npt.NDArray[np.str_]:
        """`[rows]` a column's text; the default where it is not there, or empty."""
        return np.array([value or default for value in self.columns.get(name, [default] * len(self))])

    def numbers(self, name: str, default: float | None = None, *, least: float = 0.0) -> npt.NDArray[np.float64]:
        """`[rows]` a column's numbers.

        Raises:
            InputFileError: a row has none, or one that is under `least` or not finite.
        """
        if name not in self.columns and default is not None:
            return np.full(len(self), default)
        return np.array([self._number(name, text, line, default, least) for text, line in zip(self.columns[name], self.line, strict=True)])

    def positive(self, name: str, default: float | None = None) -> npt.NDArray[np.float64]:
        """`numbers`, all over 0."""
        return self.numbers(name, default, least=np.nextafter(0.0, 1.0))

    def counts(self, name: str, default: float | None = None) -> npt.NDArray[np.float64]:
        """`numbers`, all whole and at least 1."""
        found = self.numbers(name, default, least=1.0)
        for value, line in zip(found, self.line, strict=True):
            if value != int(value):
                raise self.error(line, name, f"{value:g} is not a whole number")
        return found

    def _number(self, name: str, text: str, line: int, default: float | None, least: float) -> float:
        if not text and default is not None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= _MOST:
            wanted = "a number of at least 1" if least == 1 else "a positive number" if least else "a number of 0 or more"
            raise self.error(line, name, f"{text!r} is not {wanted}")
        return value

    def error(self, line: int, name: str, problem: str) -> InputFileError:
        """That a row can't be used."""
        return InputFileError(self.source, f"line {line}, {name}", problem, "correct the row, or leave it out")


def is_table(path: Path) -> bool:
    """Whether it is named as a table is: a profile is JSON."""
    return path.suffix.lower() == ".csv"


def read_table(path: Path) -> Table:
    """A table of one of `KINDS`, known by its header.

    Raises:
        InputFileError: not such a table, or a row has another number of cells.
    """
    source = str(path)
    text = read_bytes(path, InputFileError, MAX_TABLE_BYTES).decode("utf-8-sig", "replace")
    reader = csv.reader(io.StringIO(text))
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        kind = _kind(header, source)
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
    except csv.Error as error:
        raise InputFileError(source, f"line {reader.line_num}", str(error), "is it a CSV file?") from error
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            raise InputFileError(source, f"line {line}", f"{len(row)} cells, and the header has {len(header)}", "correct the row")
    if not rows:
        raise InputFileError(source, "rows", "none", "give a table with measured times")
    return Table(kind=kind, source=source, columns=dict(zip(header, zip(*rows, strict=True), strict=True)), line=lines)


def _kind(header: Sequence[str], source: str) -> str:
    for kind, columns in KINDS.items():
        if set(columns) <= set(header):
            if len(set(header)) < len(header):
                raise InputFileError(source, "header", "a column is there twice", "leave one out")
            return kind
    nearest = max(KINDS, key=lambda kind: len(set(KINDS[kind]) & set(header)))
    missing = [name for name in KINDS[nearest] if name not in header]
    mend = f"nearest is {nearest}, which also has {', '.join(missing)}; docs/cost.md has the columns"
    raise InputFileError(source, "header", "the columns of no table that is known", mend)


def groups(table: Table, *names: str) -> dict[tuple[Any, ...], npt.NDArray[np.int64]]:
    """Rows by the values of columns, in their order."""
    found: dict[tuple[Any, ...], list[int]] = {}
    for row, key in enumerate(zip(*(table.text(name) for name in names), strict=True)):
        found.setdefault(tuple(map(str, key)), []).append(row)
    return {key: np.array(rows) for key, rows in sorted(found.items())}


def machine_of(system: str, device: str) -> str:
    """What a row was measured on: its system's short name, else the device's."""
    return system or device or "unnamed"
