"""Topology: nodes, their devices, and the links between them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.errors import TopologyError
from grace_moe.files import dump_json, read_json, write_atomically

MAX_DEVICES = 65_536


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
    source: str = "topology"

    def __post_init__(self) -> None:
        if not self.nodes or any(not node.devices for node in self.nodes):
            raise self._error("nodes", "no nodes, or a node without devices", "give each node at least one device")
        if self.num_devices > MAX_DEVICES:
            raise self._error("nodes", f"{self.num_devices} devices are over the limit of {MAX_DEVICES}", "is it the right file?")
        for name in ("intra_node", "cross_node"):
            link = getattr(self, name)
            if not link.bandwidth_bytes_per_s > 0 or not link.latency_s >= 0:
                raise self._error(f"links.{name}", f"{link} is out of range", "give a positive bandwidth and a latency of 0 or more")
        for node in self.nodes:
            for device in node.devices:
                if not device.relative_speed > 0 or (device.memory_bytes is not None and device.memory_bytes <= 0):
                    raise self._error(
                        f"nodes.{node.name}.devices.{device.name}",
                        "speed and memory must be positive",
                        "correct relative_speed or memory_bytes",
                    )
        if self.bandwidth is not None:
            matrix = np.asarray(self.bandwidth, dtype=float)
            if matrix.shape != (self.num_devices, self.num_devices) or not (matrix > 0).all():
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
        """Read what `to_dict` wrote, or a hand-written file of that form (DESIGN.md, Files)."""

        def link(name: str) -> Link:
            entry = value.get("links", {}).get(name)
            if entry is None:
                return PRESETS[DEFAULT_PRESET][0 if name == "intra_node" else 1]
            return Link(bandwidth_bytes_per_s=float(entry["bandwidth_bytes_per_s"]), latency_s=float(entry["latency_s"]))

        try:
            nodes = tuple(
                Node(
                    name=str(node.get("name", f"node{n}")),
                    devices=tuple(
                        Device(
                            name=str(device.get("name", f"device{d}")),
                            memory_bytes=None if device.get("memory_bytes") is None else int(device["memory_bytes"]),
                            relative_speed=float(device.get("relative_speed", 1.0)),
                        )
                        for d, device in enumerate(node["devices"])
                    ),
                )
                for n, node in enumerate(value["nodes"])
            )
            matrix = value.get("bandwidth")
            bandwidth = None if matrix is None else tuple(tuple(float(x) for x in row) for row in matrix)
            intra_node, cross_node = link("intra_node"), link("cross_node")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TopologyError(source, "nodes", f"not of the form of a topology ({error!r})", "see 'Files' in docs/formats.md") from error
        return cls(nodes=nodes, intra_node=intra_node, cross_node=cross_node, bandwidth=bandwidth, source=source)

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
