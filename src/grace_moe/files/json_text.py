"""JSON from outside: of bounded size and memory, finite numbers, whole characters, and each key once."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from grace_moe.errors import InputFileError
from grace_moe.files.budget import check_budget
from grace_moe.files.reading import read_bytes

MAX_JSON_BYTES = 256 * 2**20
_LIST_BYTES, _OBJECT_BYTES, _KEY_BYTES = 96, 240, 200
"""What Python takes for a short list, an object and a key of it, as measured on 64 bits."""


def read_json(path: Path, kind: type[InputFileError], *, finite: bool = True) -> Any:
    """Parse a JSON file of at most `MAX_JSON_BYTES`. Without `finite`, it may have Python's NaN and Infinity.

    Raises:
        InputFileError: (of the given kind) missing, too large, or not such JSON.
    """
    return parse_json(read_bytes(path, kind, MAX_JSON_BYTES), kind, str(path), finite=finite)


def parse_json(data: bytes, kind: type[InputFileError], source: str, field: str = "file", *, finite: bool = True) -> Any:
    """The value of a JSON text. Without `finite`, it may have Python's NaN and Infinity.

    Raises:
        InputFileError: (of the given kind) not JSON, a number out of range, half a character, or a key twice in an object.
    """
    wanted = _LIST_BYTES * data.count(b"[") + _OBJECT_BYTES * data.count(b"{") + _KEY_BYTES * data.count(b":")
    check_budget(wanted, len(data), kind=kind, source=source, field=field)
    try:
        value = json.loads(data, parse_constant=_refuse if finite else float, parse_float=_finite, object_pairs_hook=_once)
        if b"\\ud" in data.lower():
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair can't be written again
    except (ValueError, RecursionError) as error:  # ValueError: also of bytes that are not UTF-8, and integers of 4,300 digits
        raise kind(source, field, f"not valid JSON ({error})", "write it again: it is damaged or of another kind") from error
    return value


def dump_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, two spaces, a final newline. Bytes of a file's name that are no text become '?'."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", errors="replace")


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is out of range")
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of these pairs."""
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return value
