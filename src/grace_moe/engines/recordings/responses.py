"""Responses of an engine's server: JSON objects, and the arrays that they carry as base64 text."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grace_moe.engines.recordings.dumps import MAX_BYTES
from grace_moe.errors import TraceError
from grace_moe.files import MAX_JSON_BYTES, open_regular, parse_json, read_json


def read_objects(paths: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) of each JSON object in files of one object, a list, or a line each (`.jsonl`).

    Raises:
        TraceError: missing, too large, or not JSON.
    """
    for path in paths:
        if path.suffix == ".jsonl":
            yield from _objects_of_lines(path)
            continue
        value = read_json(path, TraceError)
        for index, item in enumerate(value if isinstance(value, list) else [value]):
            yield f"{path}: {index}", _object(f"{path}: {index}", item)


def base64_bytes(text: Any, source: str, field: str) -> bytes:
    """The bytes behind base64 text. Raises TraceError: not text, or not base64."""
    if not isinstance(text, str) or len(text) > MAX_JSON_BYTES:
        raise TraceError(source, field, f"{type(text).__name__} is not base64 text", "ask the engine to return the routed experts")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise TraceError(source, field, f"not base64 ({error})", "it may be truncated: ask again") from error


def _objects_of_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Line by line: a file may be much larger than a response."""
    with open_regular(path, TraceError) as (file, size):
        if size > MAX_BYTES:
            raise TraceError(str(path), "size", f"over the limit of {MAX_BYTES} bytes", "split it")
        number, left = 0, size
        while left > 0 and (line := file.readline(min(left, MAX_JSON_BYTES))):
            number, left = number + 1, left - len(line)
            if not line.strip():
                continue
            where = f"{path}: line {number}"
            yield where, _object(where, parse_json(line, TraceError, where, "line"))


def _object(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TraceError(where, "response", f"{type(value).__name__} is not an object", "give the engine's responses as they came")
    return value
