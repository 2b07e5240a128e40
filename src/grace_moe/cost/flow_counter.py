"""Counts what layers send and compute, from the device that each (token, expert) pair went to."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from grace_moe.compiled import kernel, part
from grace_moe.cost.flows import BETWEEN_NODES, FLAT, INSIDE_NODES, PAIRS, SENT, TAKEN, Flows
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
        self._links = _Links(node=node, first=first, sizes=sizes, group=tiers.group, bandwidth=between)

    def add(self, devices: Ints, source: Ints, part: Ints) -> None:
        """Count tokens: `[T, k]` device of each pair (-1 = none), `[T]` source and part of each token."""
        ordered = np.sort(np.asarray(devices, np.int64), axis=1)
        _count(ordered, np.asarray(source, np.int64), np.asarray(part, np.int64), self._links, self.ports, self.per_rate)

    def of_part(self, part: int) -> tuple[Floats, Floats | None]:
        """`[kinds, 2, devices, tiers]` copies, and `[kinds, 2, devices]` the same over their links' bandwidths, with a matrix."""
        return self.ports[part], None if self.bandwidth is None else self.per_rate[part]


class _Links(NamedTuple):
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


@kernel
def _count(devices: Any, source: Any, part_of: Any, links: Any, ports: Any, per_rate: Any) -> None:
    """Add the copies of tokens whose devices ascend to `ports` `[parts, kinds, 2, D, tiers]` and `per_rate`."""
    for t in range(len(devices)):
        number, own, last, last_node = part_of[t], source[t], -1, -1
        for device in devices[t]:
            if device < 0:
                continue
            _send(PAIRS, number, own, device, links, ports, per_rate)
            if device == last:
                continue
            node = links.node[device]
            peer = own
            if node != links.node[own]:  # the one of the same local rank (`Topology.rail_peer`)
                peer = links.first[node] + (own - links.first[links.node[own]]) % links.sizes[node]
            _send(FLAT, number, own, device, links, ports, per_rate)
            _send(INSIDE_NODES, number, peer, device, links, ports, per_rate)
            if node != last_node:
                _send(BETWEEN_NODES, number, own, peer, links, ports, per_rate)
            last, last_node = device, node


@part
def _send(kind: int, number: int, sender: int, receiver: int, links: Any, ports: Any, per_rate: Any) -> None:
    """Count a copy in a part, unless both are one device."""
    if sender == receiver:
        return
    tier = 0
    while tier < len(links.group) - 1 and (links.group[tier, sender] < 0 or links.group[tier, sender] != links.group[tier, receiver]):
        tier += 1
    ports[number, kind, SENT, sender, tier] += 1
    ports[number, kind, TAKEN, receiver, tier] += 1
    if len(links.bandwidth):
        seconds = 1 / links.bandwidth[sender, receiver]
        per_rate[number, kind, SENT, sender] += seconds
        per_rate[number, kind, TAKEN, receiver] += seconds


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
