"""Plain values in a topology file, each read with the name of its place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from grace_moe.errors import TopologyError
from grace_moe.topology.parts import Link

MEND = "see 'Files' in docs/formats.md"
LINK_KEYS = ("bandwidth_bytes_per_s", "latency_s", "shared_bytes_per_s")


def mapping(source: str, field: str, value: Any, keys: Sequence[str] | None = None) -> dict[str, Any]:
    """An object of these keys (None = any) and no others: one that is misspelt would be a limit that is not kept."""
    if not isinstance(value, dict):
        raise TopologyError(source, field, f"{type(value).__name__} is not an object", MEND)
    for key in value:
        if keys is not None and key not in keys:
            raise TopologyError(source, f"{field}.{key}", "unknown key", f"it may have {', '.join(keys)}")
    return value


def sequence(source: str, field: str, value: Any) -> Sequence[Any]:
    """A list."""
    if not isinstance(value, (list, tuple)):
        raise TopologyError(source, field, "missing" if value is None else f"{type(value).__name__} is not a list", MEND)
    return value


def number_of(source: str, field: str, value: Any) -> float:
    """A finite number."""
    try:
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise TopologyError(source, field, "missing" if value is None else f"{type(value).__name__} is not a finite number", MEND)


def whole_of(source: str, field: str, value: Any) -> int:
    """A whole number; 8e10 is one."""
    number = number_of(source, field, value)
    if number != int(number):
        raise TopologyError(source, field, f"{value} is not a whole number", MEND)
    return value if isinstance(value, int) else int(number)


def name_of(source: str, field: str, value: Any) -> str:
    """Text."""
    if not isinstance(value, str):
        raise TopologyError(source, field, f"{type(value).__name__} is not text", MEND)
    return value


def link_of(source: str, field: str, value: Any, more: Sequence[str] = ()) -> Link:
    """A link; `more` are keys that its object has besides."""
    link = mapping(source, field, value, (*LINK_KEYS, *more))
    shared = link.get("shared_bytes_per_s")
    return Link(
        bandwidth_bytes_per_s=number_of(source, f"{field}.bandwidth_bytes_per_s", link.get("bandwidth_bytes_per_s")),
        latency_s=number_of(source, f"{field}.latency_s", link.get("latency_s")),
        shared_bytes_per_s=None if shared is None else number_of(source, f"{field}.shared_bytes_per_s", shared),
    )


def link_value(link: Link) -> dict[str, float]:
    """The JSON value of a link."""
    value = {"bandwidth_bytes_per_s": link.bandwidth_bytes_per_s, "latency_s": link.latency_s}
    return value if link.shared_bytes_per_s is None else value | {"shared_bytes_per_s": link.shared_bytes_per_s}
