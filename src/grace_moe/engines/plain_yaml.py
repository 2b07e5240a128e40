"""YAML from outside as plain values: maps, lists, whole numbers and text, event by event, without references and types of its own.

PyYAML's loaders build a tree first, which takes hundreds of bytes a number, and fail in many ways on scalars that look like dates.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from grace_moe.errors import InputFileError

_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_WHOLE = re.compile(r"[-+]?(0|[1-9]\d{0,17})")
_MAX_DEPTH = 16
_MEND = "write it again: it is damaged or of another kind"


def parse_yaml(data: bytes, kind: type[InputFileError], source: str) -> Any:
    """The value of a YAML document; scalars are whole numbers (plain, decimal), None or text.

    Raises:
        InputFileError: (of the given kind) not YAML, more than one document, a key twice, a reference or a tag, or too deep.
    """
    try:
        events = yaml.parse(data, Loader=_PARSER)
        _skip(events, yaml.StreamStartEvent, yaml.DocumentStartEvent)
        value = _value(events, next(events), 0)
        _skip(events, yaml.DocumentEndEvent, yaml.StreamEndEvent)
    except (yaml.YAMLError, ValueError, RuntimeError, StopIteration) as error:  # RuntimeError: events that end early
        raise kind(source, "file", f"not valid YAML ({error})", _MEND) from error
    return value


def _skip(events: Iterator[Any], *kinds: type) -> None:
    for expected in kinds:
        if not isinstance(next(events), expected):
            raise ValueError("not one document")


def _value(events: Iterator[Any], event: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError(f"more than {_MAX_DEPTH} levels")
    if event.anchor is not None:  # also of an alias: they could unfold to any size
        raise ValueError("references are not taken")
    if event.tag not in (None, "!"):
        raise ValueError("tags are not taken")
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event)
    if isinstance(event, yaml.SequenceStartEvent):
        return list(_items(events, yaml.SequenceEndEvent, depth))
    items = _items(events, yaml.MappingEndEvent, depth)
    value: dict[Any, Any] = {}
    for key in items:
        if isinstance(key, (list, dict)) or key in value:
            raise ValueError(f"{str(key)[:80]} is no key, or is there twice")
        value[key] = next(items)
    return value


def _items(events: Iterator[Any], end: type, depth: int) -> Iterator[Any]:
    while not isinstance(event := next(events), end):
        yield _value(events, event, depth + 1)


def _scalar(event: Any) -> int | str | None:
    text: str = event.value
    if not event.implicit[0]:  # in quotes
        return text
    if _WHOLE.fullmatch(text):
        return int(text)
    return None if text in ("", "~", "null") else text
