"""Topology: nodes, their devices, and the links between them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.errors import TopologyError
from grace_moe.files import MAX_DEVICES
from grace_moe.topology.parts import DEFAULT_PRESET, PRESETS, Device, Link, Node, Tier
from grace_moe.topology.rank_costs import KEY, fields_of_costs
from grace_moe.topology.store import LINKS, fields_of, read_file, value_of, write_file

UNNAMED = ("a100-25g", "h100-400g")
"""Presets of before topologies named their hardware: their files stay as they are, and `cost.hardware` knows them by their links."""


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
    tiers: tuple[Tier, ...] = ()
    """Further kinds of links, between groups of devices; `cost.links` says which one two devices use."""
    hardware: str | None = None
    """What its devices are: one of the presets of docs/cost.md; None = not said."""
    calibration: dict[str, Any] | None = None
    """What `grace-moe calibrate` fitted (docs/cost.md#calibrate), as `cost.calibration` reads and writes it."""
    discovered: dict[str, Any] | None = None
    """What `grace-moe discover` found, with its confidence, for people to read (docs/discover.md); nothing else reads it."""
    source: str = field(default="topology", compare=False)
    """Where it came from, for messages."""

    def __post_init__(self) -> None:
        if not self.nodes or any(not node.devices for node in self.nodes):
            raise self._error("nodes", "no nodes, or a node without devices", "give each node at least one device")
        if self.num_devices > MAX_DEVICES:
            raise self._error("nodes", f"{self.num_devices} devices are over the limit of {MAX_DEVICES}", "is it the right file?")
        for name, link in [*((name, getattr(self, name)) for name in LINKS), *((tier.name, tier.link) for tier in self.tiers)]:
            rates = (link.bandwidth_bytes_per_s, link.bandwidth_bytes_per_s if link.shared_bytes_per_s is None else link.shared_bytes_per_s)
            if not all(0 < rate < math.inf for rate in rates) or not 0 <= link.latency_s < math.inf:
                raise self._error(f"links.{name}", f"{link} is out of range", "give a positive bandwidth and a latency of 0 or more")
        self._check_devices()
        self._check_bandwidth()

    def _check_devices(self) -> None:
        for node in self.nodes:
            for device in node.devices:
                if not 0 < device.relative_speed < math.inf or (device.memory_bytes is not None and device.memory_bytes <= 0):
                    where = f"nodes.{node.name}.devices.{device.name}"
                    raise self._error(where, "speed and memory must be positive", "correct relative_speed or memory_bytes")

    def _check_bandwidth(self) -> None:
        if self.bandwidth is None:
            return
        square = len(self.bandwidth) == self.num_devices and all(len(row) == self.num_devices for row in self.bandwidth)
        if not square or not all(0 < x < math.inf for row in self.bandwidth for x in row):
            mend = "give one row a device, or leave it out"
            raise self._error("bandwidth", "not a [devices, devices] matrix of positive numbers", mend)

    def _error(self, field: str, problem: str, mend: str) -> TopologyError:
        return TopologyError(self.source, field, problem, mend)

    @property
    def num_nodes(self) -> int:
        return len(self.nodes)

    @cached_property
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
    def devices_of_nodes(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """`[nodes]` first device of each node, and `[nodes]` number of its devices."""
        sizes = np.array([len(node.devices) for node in self.nodes])
        return np.cumsum(sizes) - sizes, sizes

    def rail_peer(self, device: npt.NDArray[np.int64], node: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The device of each `node` that takes in the tokens of each `device` (broadcast together): the one of the same local rank.

        A device is its own peer on its own node; on nodes with fewer devices, local ranks wrap (docs/method.md#communication).
        """
        first, sizes = self.devices_of_nodes
        local_rank = device - first[self.node_of_device[device]]
        peers: npt.NDArray[np.int64] = first[node] + local_rank % sizes[node]
        return peers

    @cached_property
    def rail_peers(self) -> npt.NDArray[np.int64]:
        """`[devices, nodes]` every `rail_peer`; on large clusters a large table."""
        return self.rail_peer(np.arange(self.num_devices)[:, None], np.arange(self.num_nodes)[None, :])

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
        hardware = None if preset in UNNAMED else preset.split("-")[0]
        return cls(nodes=nodes, intra_node=intra, cross_node=cross, hardware=hardware, source=f"{num_nodes}x{devices_per_node}")

    @classmethod
    def parse(cls, text: str) -> Topology:
        """A shorthand (`2x4`, `2x4:h100-400g`) or the path of a topology file.

        >>> topology = Topology.parse("2x4")  # 2 nodes of 4 devices, numbered node by node
        >>> topology.num_devices, list(topology.devices_of_node(1))
        (8, [4, 5, 6, 7])

        Raises:
            TopologyError: neither, or a file that is not a topology.
        """
        match = re.fullmatch(r"(\d{1,6})x(\d{1,6})(?::([\w-]+))?", text)
        if match:
            return replace(cls.regular(int(match[1]), int(match[2]), match[3] or DEFAULT_PRESET), source=text)
        if not text.endswith(".json"):
            raise TopologyError(text, "topology", "neither NxG nor a .json file", "write 2x4 for 2 nodes of 4 devices, or name a file")
        return cls.from_dict(read_file(Path(text)), source=text)

    @classmethod
    def from_dict(cls, value: Any, source: str = "topology") -> Topology:
        """Read what `to_dict` wrote, a hand-written file of that form, or a matrix of costs between ranks (docs/formats.md).

        Raises:
            TopologyError: not of that form, or out of range.
        """
        costs = isinstance(value, dict) and set(value) == {KEY}
        return cls(**(fields_of_costs(value, source) if costs else fields_of(value, source)), source=source)

    def to_dict(self) -> dict[str, Any]:
        """The topology file's content."""
        return value_of(vars(self))

    def save(self, path: str | Path) -> None:
        """Write the topology file whole, or nothing."""
        write_file(self.to_dict(), Path(path))
