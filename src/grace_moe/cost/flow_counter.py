"""Counts what layers send and compute, from the device that each (token, expert) pair went to."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

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

    def add(self, experts: Ints, devices: Ints, part: Ints) -> None:
        """Count tokens: `[T, k]` expert and device of each pair (-1 = none), `[T]` part of each token."""
        token, k = np.nonzero(devices >= 0)
        slot = np.searchsorted(self.keys, experts[token, k] * self.devices + devices[token, k])
        self.pairs += np.bincount(part[token] * len(self.keys) + slot, minlength=len(self.pairs))

    def of_part(self, part: int) -> tuple[Ints, Floats]:
        """`[slots]` device of each, and its pairs."""
        return self.keys % self.devices, self.pairs.reshape(self.parts, -1)[part]


class FlowCounter:
    """Adds up the copies of one layer."""

    def __init__(self, topology: Topology, tiers: Tiers, parts: int) -> None:
        self.topology, self.tiers, self.node = topology, tiers, topology.node_of_device
        self.bandwidth = None if topology.bandwidth is None else np.array(topology.bandwidth)
        self.shape = (parts, _KINDS, 2, topology.num_devices, len(tiers.names))
        self.ports = np.zeros(int(np.prod(self.shape)))
        self.per_rate = np.zeros(0 if self.bandwidth is None else int(np.prod(self.shape[:-1])))

    def add(self, devices: Ints, source: Ints, part: Ints) -> None:
        """Count tokens: `[T, k]` device of each pair (-1 = none), `[T]` source and part of each token."""
        token, k = np.nonzero(devices >= 0)
        self._send(PAIRS, part[token], source[token], devices[token, k])
        ordered = np.sort(devices, axis=1)
        new = ordered >= 0
        new[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
        token, k = np.nonzero(new)
        device = ordered[token, k]
        self._send(FLAT, part[token], source[token], device)
        hands_on = self.topology.rail_peer(source[token], self.node[device])
        self._send(INSIDE_NODES, part[token], hands_on, device)
        new_node = np.ones(len(token), dtype=bool)  # devices are ascending, and so are their nodes
        new_node[1:] = (token[1:] != token[:-1]) | (self.node[device[1:]] != self.node[device[:-1]])
        self._send(BETWEEN_NODES, part[token[new_node]], source[token[new_node]], hands_on[new_node])

    def _send(self, kind: int, part: Ints, sender: Ints, receiver: Ints) -> None:
        """Count a copy for each pair of devices that are not the same."""
        other = sender != receiver
        part, sender, receiver = part[other], sender[other], receiver[other]
        tier = self.tiers.of_pairs(sender, receiver)
        for direction, device in ((SENT, sender), (TAKEN, receiver)):
            port = ((part * _KINDS + kind) * 2 + direction) * self.shape[3] + device
            self.ports += np.bincount(port * self.shape[4] + tier, minlength=len(self.ports))
            if self.bandwidth is not None:
                self.per_rate += np.bincount(port, 1 / self.bandwidth[sender, receiver], len(self.per_rate))

    def of_part(self, part: int) -> tuple[Floats, Floats | None]:
        """`[kinds, 2, devices, tiers]` copies, and `[kinds, 2, devices]` the same over their links' bandwidths, with a matrix."""
        per_rate = None if self.bandwidth is None else self.per_rate.reshape(self.shape[:-1])[part]
        return self.ports.reshape(self.shape)[part], per_rate


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
