"""Topology: nodes, their devices, and the links between them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.errors import TopologyError
from grace_moe.files import dump_json, read_json, write_atomically

MAX_DEVICES = 4096
"""Tables of devices by devices stay small."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """One kind of link, by the alpha-beta model: `latency_s + bytes / bandwidth_bytes_per_s`."""

    bandwidth_bytes_per_s: float
    """Each way, per device."""
    latency_s: float
    """Fixed cost of one transfer."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """One accelerator."""

    name: str
    memory_bytes: int | None = None
    """Memory for experts; None = not limited."""
    relative_speed: float = 1.0
    """Expert pairs per second relative to the others."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """Devices that share the fast links."""

    name: str
    devices: tuple[Device, ...]


PRESETS: dict[str, tuple[Link, Link]] = {
    "a100-25g": (
        Link(bandwidth_bytes_per_s=300e9, latency_s=5e-6),
        Link(bandwidth_bytes_per_s=3.125e9, latency_s=20e-6),
    ),
    "h100-400g": (
        Link(bandwidth_bytes_per_s=450e9, latency_s=3e-6),
        Link(bandwidth_bytes_per_s=50e9, latency_s=8e-6),
    ),
}
"""Intra-node and cross-node link of well-known clusters; the first is the paper's (METHOD.md, What the paper measured)."""
DEFAULT_PRESET = "a100-25g"
_LINKS = ("intra_node", "cross_node")
_MEND = "see 'Files' in docs/formats.md"


@dataclass(frozen=True, kw_only=True)
class Topology:
    """A cluster. Devices are numbered node by node ("node-major"): device d of node n is `offset(n) + d`.

    Raises:
        TopologyError: on construction, if a count, speed or link is out of range.
    """

    nodes: tuple[Node, ...]
    intra_node: Link
    cross_node: Link
    bandwidth: tuple[tuple[float, ...], ...] | None = None
    """`[devices, devices]` bytes per second where links are irregular; None = by `intra_node` and `cross_node`."""
    source: str = field(default="topology", compare=False)
    """Where it came from, for messages."""

    def __post_init__(self) -> None:
        if not self.nodes or any(not node.devices for node in self.nodes):
            raise self._error("nodes", "no nodes, or a node without devices", "give each node at least one device")
        if self.num_devices > MAX_DEVICES:
            raise self._error("nodes", f"{self.num_devices} devices are over the limit of {MAX_DEVICES}", "is it the right file?")
        for name in _LINKS:
            link = getattr(self, name)
            if not 0 < link.bandwidth_bytes_per_s < math.inf or not 0 <= link.latency_s < math.inf:
                raise self._error(f"links.{name}", f"{link} is out of range", "give a positive bandwidth and a latency of 0 or more")
        for node in self.nodes:
            for device in node.devices:
                if not 0 < device.relative_speed < math.inf or (device.memory_bytes is not None and device.memory_bytes <= 0):
                    raise self._error(
                        f"nodes.{node.name}.devices.{device.name}",
                        "speed and memory must be positive",
                        "correct relative_speed or memory_bytes",
                    )
        if self.bandwidth is not None:
            square = len(self.bandwidth) == self.num_devices and all(len(row) == self.num_devices for row in self.bandwidth)
            if not square or not all(0 < x < math.inf for row in self.bandwidth for x in row):
                raise self._error(
                    "bandwidth", "not a [devices, devices] matrix of positive numbers", "give one row a device, or leave it out"
                )

    def _error(self, field: str, problem: str, mend: str) -> TopologyError:
        return TopologyError(self.source, field, problem, mend)

    @property
    def num_nodes(self) -> int:
        return len(self.nodes)

    @property
    def num_devices(self) -> int:
        return sum(len(node.devices) for node in self.nodes)

    @cached_property
    def node_of_device(self) -> npt.NDArray[np.int64]:
        """`[devices]` node of each device."""
        return np.repeat(np.arange(self.num_nodes), [len(node.devices) for node in self.nodes])

    @cached_property
    def relative_speed(self) -> npt.NDArray[np.float64]:
        """`[devices]` relative speed of each device."""
        return np.array([device.relative_speed for node in self.nodes for device in node.devices])

    @cached_property
    def rail_peers(self) -> npt.NDArray[np.int64]:
        """`[devices, nodes]` the device of each node that takes in a device's tokens: the one of the same local rank.

        A device is its own peer on its own node; on nodes with fewer devices, local ranks wrap (METHOD.md, HSC stage 1).
        """
        sizes = np.array([len(node.devices) for node in self.nodes])
        starts = np.cumsum(sizes) - sizes
        local = np.arange(self.num_devices) - starts[self.node_of_device]
        peers: npt.NDArray[np.int64] = starts[None, :] + local[:, None] % sizes[None, :]
        return peers

    def devices_of_node(self, node: int) -> range:
        """Device numbers of one node."""
        start = sum(len(n.devices) for n in self.nodes[:node])
        return range(start, start + len(self.nodes[node].devices))

    @property
    def devices_per_node(self) -> int | None:
        """G where every node has as many devices; None otherwise."""
        counts = {len(node.devices) for node in self.nodes}
        return counts.pop() if len(counts) == 1 else None

    @property
    def shape(self) -> str:
        """`2x4` for equal nodes, `4+2+2` otherwise."""
        if self.devices_per_node is not None:
            return f"{self.num_nodes}x{self.devices_per_node}"
        return "+".join(str(len(node.devices)) for node in self.nodes)

    @classmethod
    def regular(cls, num_nodes: int, devices_per_node: int, preset: str = DEFAULT_PRESET) -> Topology:
        """`num_nodes` equal nodes of `devices_per_node` equal devices."""
        if preset not in PRESETS:
            raise TopologyError("topology", "preset", f"{preset!r} is unknown", f"use one of {', '.join(PRESETS)}")
        if not (num_nodes >= 1 and devices_per_node >= 1 and num_nodes * devices_per_node <= MAX_DEVICES):
            raise TopologyError("topology", "shape", f"{num_nodes}x{devices_per_node} is out of range", "use NxG, such as 2x4")
        intra, cross = PRESETS[preset]
        nodes = tuple(
            Node(name=f"node{n}", devices=tuple(Device(name=f"device{g}") for g in range(devices_per_node))) for n in range(num_nodes)
        )
        return cls(nodes=nodes, intra_node=intra, cross_node=cross, source=f"{num_nodes}x{devices_per_node}")

    @classmethod
    def parse(cls, text: str) -> Topology:
        """A shorthand (`2x4`, `2x4:h100-400g`) or the path of a topology file.

        Raises:
            TopologyError: neither, or a file that is not a topology.
        """
        match = re.fullmatch(r"(\d{1,6})x(\d{1,6})(?::([\w-]+))?", text)
        if match:
            return cls.regular(int(match[1]), int(match[2]), match[3] or DEFAULT_PRESET)
        if not text.endswith(".json"):
            raise TopologyError(text, "topology", "neither NxG nor a .json file", "write 2x4 for 2 nodes of 4 devices, or name a file")
        return cls.from_dict(read_json(Path(text), TopologyError), source=text)

    @classmethod
    def from_dict(cls, value: Any, source: str = "topology") -> Topology:
        """Read what `to_dict` wrote, or a hand-written file of that form (DESIGN.md, Files).

        Raises:
            TopologyError: not of that form, or out of range.
        """
        value = _mapping(source, "topology", value)
        nodes = tuple(_node(source, f"nodes[{n}]", n, node) for n, node in enumerate(_sequence(source, "nodes", value.get("nodes"))))
        links = _mapping(source, "links", value.get("links", {}))
        for name in links:
            if name not in _LINKS:
                raise TopologyError(source, f"links.{name}", "unknown link", "name intra_node and cross_node")
        matrix = value.get("bandwidth")
        bandwidth = None
        if matrix is not None:
            bandwidth = tuple(
                tuple(_number(source, f"bandwidth[{i}][{j}]", x) for j, x in enumerate(_sequence(source, f"bandwidth[{i}]", row)))
                for i, row in enumerate(_sequence(source, "bandwidth", matrix))
            )
        intra, cross = (_link(source, links, name, preset) for name, preset in zip(_LINKS, PRESETS[DEFAULT_PRESET], strict=True))
        return cls(nodes=nodes, intra_node=intra, cross_node=cross, bandwidth=bandwidth, source=source)

    def to_dict(self) -> dict[str, Any]:
        """The topology file's content."""
        value: dict[str, Any] = {
            "nodes": [
                {
                    "name": node.name,
                    "devices": [{"name": d.name, "memory_bytes": d.memory_bytes, "relative_speed": d.relative_speed} for d in node.devices],
                }
                for node in self.nodes
            ],
            "links": {
                name: {"bandwidth_bytes_per_s": link.bandwidth_bytes_per_s, "latency_s": link.latency_s}
                for name, link in (("intra_node", self.intra_node), ("cross_node", self.cross_node))
            },
        }
        if self.bandwidth is not None:
            value["bandwidth"] = [list(row) for row in self.bandwidth]
        return value

    def save(self, path: str | Path) -> None:
        """Write the topology file whole, or nothing."""
        write_atomically(Path(path), dump_json(self.to_dict()))


def _mapping(source: str, field: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TopologyError(source, field, f"{type(value).__name__} is not an object", _MEND)
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
    return value if isinstance(value, int) else int(number)


def _name(source: str, field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TopologyError(source, field, f"{type(value).__name__} is not text", _MEND)
    return value


def _node(source: str, where: str, number: int, value: Any) -> Node:
    node = _mapping(source, where, value)
    devices = _sequence(source, f"{where}.devices", node.get("devices"))
    return Node(
        name=_name(source, f"{where}.name", node.get("name", f"node{number}")),
        devices=tuple(_device(source, f"{where}.devices[{d}]", d, device) for d, device in enumerate(devices)),
    )


def _device(source: str, where: str, number: int, value: Any) -> Device:
    device = _mapping(source, where, value)
    memory = device.get("memory_bytes")
    return Device(
        name=_name(source, f"{where}.name", device.get("name", f"device{number}")),
        memory_bytes=None if memory is None else _whole(source, f"{where}.memory_bytes", memory),
        relative_speed=_number(source, f"{where}.relative_speed", device.get("relative_speed", 1.0)),
    )


def _link(source: str, links: dict[str, Any], name: str, preset: Link) -> Link:
    if links.get(name) is None:
        return preset
    link = _mapping(source, f"links.{name}", links[name])
    return Link(
        bandwidth_bytes_per_s=_number(source, f"links.{name}.bandwidth_bytes_per_s", link.get("bandwidth_bytes_per_s")),
        latency_s=_number(source, f"links.{name}.latency_s", link.get("latency_s")),
    )
