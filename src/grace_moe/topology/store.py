"""The topology file: JSON (docs/formats.md, Topology). Reads and writes plain values; `Topology` checks what they say together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grace_moe.errors import TopologyError
from grace_moe.files import dump_json, read_json, write_atomically
from grace_moe.topology.parts import DEFAULT_PRESET, PRESETS, Device, Link, Node

LINKS = ("intra_node", "cross_node")
_MEND = "see 'Files' in docs/formats.md"


def read_file(path: Path) -> Any:
    """The JSON value of a topology file. Raises TopologyError: missing, too large, or not JSON."""
    return read_json(path, TopologyError)


def write_file(value: dict[str, Any], path: Path) -> None:
    """Write a topology's JSON value whole, or nothing."""
    write_atomically(path, dump_json(value))


def fields_of(value: Any, source: str) -> dict[str, Any]:
    """The fields of a `Topology` in a JSON value: `nodes`, `intra_node`, `cross_node` and `bandwidth`.

    Raises:
        TopologyError: a part is missing, or of another type.
    """
    value = _mapping(source, "topology", value, ("nodes", "links", "bandwidth"))
    nodes = tuple(_node(source, f"nodes[{n}]", n, node) for n, node in enumerate(_sequence(source, "nodes", value.get("nodes"))))
    links = _mapping(source, "links", value.get("links", {}), LINKS)
    intra, cross = (_link(source, links, name, preset) for name, preset in zip(LINKS, PRESETS[DEFAULT_PRESET], strict=True))
    return {"nodes": nodes, "intra_node": intra, "cross_node": cross, "bandwidth": _matrix(source, value.get("bandwidth"))}


def value_of(
    nodes: Sequence[Node], intra_node: Link, cross_node: Link, bandwidth: Sequence[Sequence[float]] | None = None
) -> dict[str, Any]:
    """The JSON value of a topology."""
    value: dict[str, Any] = {
        "nodes": [
            {
                "name": node.name,
                "devices": [{"name": d.name, "memory_bytes": d.memory_bytes, "relative_speed": d.relative_speed} for d in node.devices],
            }
            for node in nodes
        ],
        "links": {
            name: {"bandwidth_bytes_per_s": link.bandwidth_bytes_per_s, "latency_s": link.latency_s}
            for name, link in zip(LINKS, (intra_node, cross_node), strict=True)
        },
    }
    if bandwidth is not None:
        value["bandwidth"] = [list(row) for row in bandwidth]
    return value


def _matrix(source: str, value: Any) -> tuple[tuple[float, ...], ...] | None:
    if value is None:
        return None
    rows = [_sequence(source, f"bandwidth[{i}]", row) for i, row in enumerate(_sequence(source, "bandwidth", value))]
    for i, row in enumerate(rows):
        if not all(type(x) is float for x in row):  # the names of a number's place cost more than the number
            rows[i] = [_number(source, f"bandwidth[{i}][{j}]", x) for j, x in enumerate(row)]
    return tuple(map(tuple, rows))


def _mapping(source: str, field: str, value: Any, keys: Sequence[str]) -> dict[str, Any]:
    """An object of these keys and no others: one that is misspelt would be a limit that is not kept."""
    if not isinstance(value, dict):
        raise TopologyError(source, field, f"{type(value).__name__} is not an object", _MEND)
    for key in value:
        if key not in keys:
            what = "link" if keys is LINKS else "key"
            mend = f"name {' and '.join(keys)}" if keys is LINKS else f"it may have {', '.join(keys)}"
            raise TopologyError(source, f"{field}.{key}", f"unknown {what}", mend)
    return value


def _sequence(source: str, field: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise TopologyError(source, field, "missing" if value is None else f"{type(value).__name__} is not a list", _MEND)
    return value


def _number(source: str, field: str, value: Any) -> float:
    try:
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise TopologyError(source, field, "missing" if value is None else f"{type(value).__name__} is not a finite number", _MEND)


def _whole(source: str, field: str, value: Any) -> int:
    number = _number(source, field, value)
    if number != int(number):
        raise TopologyError(source, field, f"{value} is not a whole number", _MEND)
    return value if isinstance(value, int) else int(number)


def _name(source: str, field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TopologyError(source, field, f"{type(value).__name__} is not text", _MEND)
    return value


def _node(source: str, where: str, number: int, value: Any) -> Node:
    node = _mapping(source, where, value, ("name", "devices"))
    devices = _sequence(source, f"{where}.devices", node.get("devices"))
    return Node(
        name=_name(source, f"{where}.name", node.get("name", f"node{number}")),
        devices=tuple(_device(source, f"{where}.devices[{d}]", d, device) for d, device in enumerate(devices)),
    )


def _device(source: str, where: str, number: int, value: Any) -> Device:
    device = _mapping(source, where, value, ("name", "memory_bytes", "relative_speed"))
    memory = device.get("memory_bytes")
    return Device(
        name=_name(source, f"{where}.name", device.get("name", f"device{number}")),
        memory_bytes=None if memory is None else _whole(source, f"{where}.memory_bytes", memory),
        relative_speed=_number(source, f"{where}.relative_speed", device.get("relative_speed", 1.0)),
    )


def _link(source: str, links: dict[str, Any], name: str, preset: Link) -> Link:
    if links.get(name) is None:
        return preset
    link = _mapping(source, f"links.{name}", links[name], ("bandwidth_bytes_per_s", "latency_s"))
    return Link(
        bandwidth_bytes_per_s=_number(source, f"links.{name}.bandwidth_bytes_per_s", link.get("bandwidth_bytes_per_s")),
        latency_s=_number(source, f"links.{name}.latency_s", link.get("latency_s")),
    )
