"""Copies of experts on nodes to begin a search from: by load, or those of an existing placement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grace_moe.placement import LayerPlacement
from grace_moe.topology import Topology


@dataclass(frozen=True, kw_only=True)
class NodeLimits:
    """What each node can take."""

    slots: npt.NDArray[np.int64]
    """`[N]` experts that the node's devices hold together."""
    devices: npt.NDArray[np.int64]
    """`[N]` devices: the most copies of one expert that are of use."""
    capacity: npt.NDArray[np.float64]
    """`[N]` share of all devices' speed."""


def seed_copies(share: npt.NDArray[np.float64], limits: NodeLimits) -> npt.NDArray[np.int64]:
    """A balanced start `[N, E]`: copies by heat (as EPLB), dealt heaviest first to the lightest node with room."""
    nodes, experts = len(limits.slots), len(share)
    heat = share + max(share.mean(), 1e-12) * 1e-3
    total = np.ones(experts, np.int64)
    for _ in range(int(limits.slots.sum()) - experts):
        total[np.argmax(np.where(total < limits.devices.sum(), heat / total, -1.0))] += 1
    copies = np.zeros((nodes, experts), np.int64)
    load = np.zeros(nodes)
    for expert in np.argsort(-heat / total, kind="stable"):
        for _ in range(total[expert]):
            open_ = (copies.sum(axis=1) < limits.slots) & (copies[:, expert] < limits.devices)
            if open_.any():
                fewest = copies[open_, expert].min()
                node = int(np.argmin(np.where(open_ & (copies[:, expert] == fewest), load / limits.capacity, np.inf)))
                copies[node, expert] += 1
                load[node] += heat[expert] / total[expert]
    for node in range(nodes):  # slots that the deal could not use
        while copies[node].sum() < limits.slots[node]:
            copies[node, np.argmax(np.where(copies[node] < limits.devices[node], heat / (1 + copies.sum(axis=0)), -1))] += 1
    return copies


def copies_on_nodes(layer: LayerPlacement, topology: Topology, slots: int) -> npt.NDArray[np.int64]:
    """`[N, E]` copies that each node of a placement holds; slots of its devices that are empty get more of what it holds.

    Args:
        slots: of each device.
    """
    copies = np.zeros((topology.num_nodes, len(layer.devices_of_expert)), np.int64)
    for expert, devices in enumerate(layer.devices_of_expert):
        np.add.at(copies[:, expert], topology.node_of_device[list(devices)], 1)
    for node, row in enumerate(copies):
        most = len(topology.nodes[node].devices)
        for _ in range(min(most * slots, most * len(row)) - int(row.sum())):
            row[np.argmin(np.where(row == 0, most + 1, np.where(row < most, row, most + 2)))] += 1
    return copies
