"""Which link two devices use, and how long the busiest port takes: tiers of links, narrow to wide (docs/cost.md#links)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grace_moe.topology import Link, Tier, Topology

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Tiers:
    """All kinds of links of a cluster, from the one with the smallest groups to `cross_node`, which joins everything."""

    names: tuple[str, ...]
    links: tuple[Link, ...]
    group: Ints
    """`[tiers, devices]` group of each device; -1 = in none."""
    node: int
    """Which of them is `intra_node`; those after it go between nodes."""

    def of_pairs(self, sender: Ints, receiver: Ints) -> Ints:
        """The tier that each pair of devices uses: the narrowest with a group that has both (broadcast together)."""
        found = np.full(np.broadcast(sender, receiver).shape, len(self.links) - 1)
        for tier in reversed(range(len(self.links) - 1)):
            group = self.group[tier][sender]
            found = np.where((group == self.group[tier][receiver]) & (group >= 0), tier, found)
        return found


def tiers_of(topology: Topology) -> Tiers:
    """Its tiers, narrow to wide."""
    devices = topology.num_devices
    rows: list[tuple[int, int, str, Link, Ints]] = [
        (int(topology.devices_of_nodes[1].max()), 0, "intra_node", topology.intra_node, topology.node_of_device)
    ]
    rows += [(max(map(len, tier.groups), default=0), 1, tier.name, tier.link, _groups(tier, devices)) for tier in topology.tiers]
    rows.sort(key=lambda row: row[:3])
    rows.append((devices, 2, "cross_node", topology.cross_node, np.zeros(devices, dtype=np.int64)))
    names = tuple(row[2] for row in rows)
    return Tiers(
        names=names,
        links=tuple(row[3] for row in rows),
        group=np.stack([row[4] for row in rows]),
        node=names.index("intra_node"),
    )


def _groups(tier: Tier, devices: int) -> Ints:
    group = np.full(devices, -1, dtype=np.int64)
    for number, members in enumerate(tier.groups):
        group[list(members)] = number
    return group


def busiest_port(copies: Floats, copy_bytes: float, tiers: Tiers, topology: Topology, per_rate: Floats | None = None) -> Floats:
    """`[layers]` seconds of an exchange, in which every device sends and takes in at once.

    Each tier has ports of its own, which work at the same time: a device's port sends its copies one after the other, and all devices
    of a node share the tier's rails where the link says so. The slowest port counts, after the latency of the widest tier in use.

    Args:
        copies: `[layers, 2, devices, tiers]` sent, and taken in.
        copy_bytes: of one.
        per_rate: `[layers, 2, devices]` copies over the bandwidth of each one's link, where the topology has a matrix: instead of
            the tiers' bandwidths.
    """
    rate = np.array([link.bandwidth_bytes_per_s for link in tiers.links])
    port = (copies / rate).max(axis=3) if per_rate is None else per_rate
    seconds = port.max(axis=(1, 2)) * copy_bytes
    for tier, link in enumerate(tiers.links):
        if link.shared_bytes_per_s is not None:
            by_node = np.add.reduceat(copies[..., tier], topology.devices_of_nodes[0], axis=2)
            seconds = np.maximum(seconds, by_node.max(axis=(1, 2)) * copy_bytes / link.shared_bytes_per_s)
    used = copies.any(axis=(1, 2))
    latency = np.where(used, np.array([link.latency_s for link in tiers.links]), 0.0).max(axis=1)
    return np.asarray(seconds + latency)
