"""The topology file: JSON (docs/formats.md, Topology). Reads and writes plain values; `Topology` checks what they say together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grace_moe.errors import TopologyError
from grace_moe.files import dump_json, read_json, write_atomically
from grace_moe.topology.parts import DEFAULT_PRESET, PRESETS, Device, Node
from grace_moe.topology.tiers import tiers_of, tiers_value
from grace_moe.topology.values import MEND, link_of, link_value, mapping, name_of, number_of, sequence, whole_of

LINKS = ("intra_node", "cross_node")
_OBJECTS = ("calibration", "discovered")
"""Parts that are kept as they are, for whoever wrote them."""


def read_file(path: Path) -> Any:
    """The JSON value of a topology file. Raises TopologyError: missing, too large, or not JSON."""
    return read_json(path, TopologyError)


def write_file(value: dict[str, Any], path: Path) -> None:
    """Write a topology's JSON value whole, or nothing."""
    write_atomically(path, dump_json(value))


def fields_of(value: Any, source: str) -> dict[str, Any]:
    """The fields of a `Topology` in a JSON value.

    Raises:
        TopologyError: a part is missing, or of another type.
    """
    value = mapping(source, "topology", value, ("nodes", "links", "bandwidth", "hardware", *_OBJECTS))
    nodes = tuple(_node(source, f"nodes[{n}]", n, node) for n, node in enumerate(sequence(source, "nodes", value.get("nodes"))))
    links = mapping(source, "links", value.get("links", {}))
    intra, cross = (
        preset if links.get(name) is None else link_of(source, f"links.{name}", links[name])
        for name, preset in zip(LINKS, PRESETS[DEFAULT_PRESET], strict=True)
    )
    hardware = value.get("hardware")
    kept = {name: value.get(name) for name in _OBJECTS}
    for name, part in kept.items():
        if part is not None and not isinstance(part, dict):
            raise TopologyError(source, name, f"{type(part).__name__} is not an object", MEND)
    return {
        "nodes": nodes,
        "intra_node": intra,
        "cross_node": cross,
        "bandwidth": _matrix(source, value.get("bandwidth")),
        "tiers": tiers_of(source, links, LINKS, sum(len(node.devices) for node in nodes)),
        "hardware": None if hardware is None else name_of(source, "hardware", hardware),
        **kept,
    }


def value_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON value of a topology's fields, by the names of `fields_of`; what was not given is not there."""
    value: dict[str, Any] = {
        "nodes": [
            {
                "name": node.name,
                "devices": [{"name": d.name, "memory_bytes": d.memory_bytes, "relative_speed": d.relative_speed} for d in node.devices],
            }
            for node in fields["nodes"]
        ],
        "links": {name: link_value(fields[name]) for name in LINKS} | tiers_value(fields["tiers"]),
    }
    if fields["bandwidth"] is not None:
        value["bandwidth"] = [list(row) for row in fields["bandwidth"]]
    return value | {name: fields[name] for name in ("hardware", *_OBJECTS) if fields[name] is not None}


def _matrix(source: str, value: Any) -> tuple[tuple[float, ...], ...] | None:
    if value is None:
        return None
    rows = [sequence(source, f"bandwidth[{i}]", row) for i, row in enumerate(sequence(source, "bandwidth", value))]
    for i, row in enumerate(rows):
        if not all(type(x) is float for x in row):  # the names of a number's place cost more than the number
            rows[i] = [number_of(source, f"bandwidth[{i}][{j}]", x) for j, x in enumerate(row)]
    return tuple(map(tuple, rows))


def _node(source: str, where: str, number: int, value: Any) -> Node:
    node = mapping(source, where, value, ("name", "devices"))
    devices = sequence(source, f"{where}.devices", node.get("devices"))
    return Node(
        name=name_of(source, f"{where}.name", node.get("name", f"node{number}")),
        devices=tuple(_device(source, f"{where}.devices[{d}]", d, device) for d, device in enumerate(devices)),
    )


def _device(source: str, where: str, number: int, value: Any) -> Device:
    device = mapping(source, where, value, ("name", "memory_bytes", "relative_speed"))
    memory = device.get("memory_bytes")
    return Device(
        name=name_of(source, f"{where}.name", device.get("name", f"device{number}")),
        memory_bytes=None if memory is None else whole_of(source, f"{where}.memory_bytes", memory),
        relative_speed=number_of(source, f"{where}.relative_speed", device.get("relative_speed", 1.0)),
    )
