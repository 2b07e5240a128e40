"""Where the cluster's drawing puts nodes and devices. Units are the drawing's own; y points up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grace_moe.topology import Topology

_DEVICE_SPACE = 1.0
"""Between the centres of neighbouring devices."""
_MARGIN = 0.62
"""From an outer device's centre to its node's edge."""
_GAP = 1.7
"""Between the edges of two nodes side by side, in which their traffic is drawn; more where nodes are large."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Positions; every node is a square of the same size."""

    nodes: Floats
    """`[nodes, 2]` centres."""
    devices: Floats
    """`[devices, 2]` centres."""
    half: float
    """Half the side of a node."""

    def between(self, a: int, b: int) -> tuple[Floats, Floats]:
        """Where the line of two nodes' centres leaves one and meets the other."""
        start, end = self.nodes[a], self.nodes[b]
        step = (end - start) * self.half / np.abs(end - start).max()
        return start + step, end - step

    @property
    def span(self) -> tuple[float, float]:
        """Width and height of it all."""
        size = self.nodes.max(axis=0) - self.nodes.min(axis=0) + 2 * self.half
        return float(size[0]), float(size[1]) + 0.32  # the upper nodes' names


def drawing(topology: Topology) -> Drawing:
    """Nodes on a circle (two side by side), and in each its devices on a circle (two one above the other)."""
    sizes = [len(node.devices) for node in topology.nodes]
    radius = _radius(max(sizes), _DEVICE_SPACE)
    half = radius + _MARGIN
    gap = max(_GAP, half)
    apart = 2 * half + gap
    nodes = _circle(len(sizes), _radius(len(sizes), apart * (1.0 if len(sizes) in (1, 2, 4) else 1.15)), start=0.0)
    devices = [nodes[n] + _circle(size, _radius(size, _DEVICE_SPACE), start=90.0) for n, size in enumerate(sizes)]
    return Drawing(nodes=nodes, devices=np.concatenate(devices), half=half)


def _radius(count: int, space: float) -> float:
    """Of a circle on which neighbours are so far apart."""
    return 0.0 if count == 1 else space / (2 * float(np.sin(np.pi / count)))


def _circle(count: int, radius: float, *, start: float) -> Floats:
    """`[count, 2]` points, clockwise; two lie along `start` (degrees), the first left or above; four form an upright square."""
    if count == 2:
        first = 180.0 if start == 0 else 90.0
    elif count == 4:
        first = 135.0
    else:
        first = 90.0
    angles = np.radians(first - 360.0 * np.arange(count) / count)
    points: Floats = radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return points.round(9) + 0.0
