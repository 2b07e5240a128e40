"""Counts what layers send and compute, from the device that each (token, expert) pair went to."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from grace_moe.cost.flows import Flows
from grace_moe.cost.links import Tiers
from grace_moe.placement import LayerPlacement
from grace_moe.topology import Topology

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_KINDS = 4


class SlotCounter:
    """The slots of a layer, ascending by expert and device, and the pairs that each computes."""

    def __init__(self, layer: LayerPlacement, devices: int, parts: int) -> None:
        rows = layer.devices_of_expert
        self.devices, self.parts = devices, parts
        self.keys = np.array(sorted(expert * self.devices + device for expert, row in enumerate(rows) for device in row), dtype=np.int64)
        self.pairs = np.zeros(parts * len(self.keys))
        self._slot = np.zeros(len(rows) * devices, np.int64)
        self._slot[self.keys] = np.arange(len(self.keys))

    def add(self, experts: Ints, devices: Ints, part: Ints) -> None:
        """Count tokens: `[T, k]` expert and device of each pair (-1 = none), `[T]` part of each token."""
        token, k = np.nonzero(devices >= 0)
        slot = self._slot[experts[token, k] * self.devices + devices[token, k]]
        self.pairs += np.bincount(part[token] * len(self.keys) + slot, minlength=len(self.pairs))

    def of_part(self, part: int) -> tuple[Ints, Floats]:
        """`[slots]` device of each, and its pairs."""
        return self.keys % self.devices, self.pairs.reshape(self.parts, -1)[part]


class FlowCounter:
    """Adds up the copies of one layer."""

    def __init__(self, topology: Topology, tiers: Tiers, parts: int) -> None:
        self.bandwidth = None if topology.bandwidth is None else np.array(topology.bandwidth, dtype=np.float64)
        self.shape = (parts, _KINDS, 2, topology.num_devices, len(tiers.names))
        self.ports = np.zeros(self.shape)
        self.per_rate = np.zeros(self.shape[:-1] if self.bandwidth is not None else (0, 0, 0, 0))
        node, (first, sizes) = topology.node_of_device, topology.devices_of_nodes
        between = np.zeros((0, 0)) if self.bandwidth is None else self.bandwidth
        self.links = Links(node=node, first=first, sizes=sizes, group=tiers.group, bandwidth=between)

    def add(self, devices: Ints, source: Ints, part: Ints) -> None:
        """Count tokens: `[T, k]` device of each pair (-1 = none), `[T]` source and part of each token."""
        ordered = np.sort(np.asarray(devices, np.int64), axis=1)
        _count_copies(ordered, np.asarray(source, np.int64), np.asarray(part, np.int64), self)

    def of_part(self, part: int) -> tuple[Floats, Floats | None]:
        """`[kinds, 2, devices, tiers]` copies, and `[kinds, 2, devices]` the same over their links' bandwidths, with a matrix."""
        return self.ports[part], None if self.bandwidth is None else self.per_rate[part]


class Links(NamedTuple):
    """Which link two devices use. D devices, N nodes."""

    node: Ints
    """`[D]`"""
    first: Ints
    """`[N]` first device of each node."""
    sizes: Ints
    """`[N]` devices of each."""
    group: Ints
    """`[tiers, D]`, as `Tiers` has it."""
    bandwidth: Floats
    """`[D, D]`, or nothing."""


def _count_copies(ordered: Ints, source: Ints, part: Ints, counter: FlowCounter) -> None:
    from grace_moe.cost.copy_kernels import count_copies

    count_copies(ordered, source, part, counter.links, counter.ports, counter.per_rate)


def counted_flows(layers: list[tuple[SlotCounter, FlowCounter]], tokens: Floats, part: int) -> Flows:
    """One part's flows."""
    slots = [layer_slots.of_part(part) for layer_slots, _ in layers]
    copies = [counter.of_part(part) for _, counter in layers]
    width = max(len(pairs) for _, pairs in slots)
    per_rate = [rate for _, rate in copies if rate is not None]
    return Flows(
        tokens=tokens,
        ports=np.stack([ports for ports, _ in copies]),
        per_rate=np.stack(per_rate) if per_rate else None,
        slot_device=np.stack([np.pad(device, (0, width - len(device))) for device, _ in slots]),
        slot_pairs=np.stack([np.pad(pairs, (0, width - len(pairs))) for _, pairs in slots]),
    )
