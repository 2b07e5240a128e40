"""The parts of a cluster: links, devices and nodes; and the links of clusters that are well known."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Link:
    """One kind of link, by the alpha-beta model: `latency_s + bytes / bandwidth_bytes_per_s`."""

    bandwidth_bytes_per_s: float
    """Each way, per device."""
    latency_s: float
    """Fixed cost of one transfer."""
    shared_bytes_per_s: float | None = None
    """Each way, of all devices of a node (or group) together, to what is outside of it: its rails. None = each device has its own."""


@dataclass(frozen=True, kw_only=True)
class Tier:
    """A further kind of link, between the devices of a group: a pair of sockets, an NVLink domain of several nodes, a rack."""

    name: str
    link: Link
    groups: tuple[tuple[int, ...], ...]
    """Device numbers; no device is in two groups. Two devices use the link of the smallest group that has both."""


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


def _links(inside: float, inside_latency: float, across: float, across_latency: float) -> tuple[Link, Link]:
    return Link(bandwidth_bytes_per_s=inside, latency_s=inside_latency), Link(bandwidth_bytes_per_s=across, latency_s=across_latency)


PRESETS: dict[str, tuple[Link, Link]] = {
    "a100-25g": _links(300e9, 5e-6, 3.125e9, 20e-6),
    "h100-400g": _links(450e9, 3e-6, 50e9, 8e-6),
    "a100-200g": _links(300e9, 5e-6, 25e9, 8e-6),
    "h200-400g": _links(450e9, 3e-6, 50e9, 8e-6),
    "b200-400g": _links(900e9, 3e-6, 50e9, 8e-6),
    "gb200-nvl72": _links(900e9, 3e-6, 50e9, 8e-6),
    "mi300x-400g": _links(448e9, 5e-6, 50e9, 8e-6),
}
"""Intra-node and cross-node link of well-known clusters, and by the name's beginning their devices (docs/cost.md#presets). The first is
the paper's (docs/method.md#what-the-paper-measured). A node of gb200-nvl72 is an NVLink domain: 1x72 is one rack."""
DEFAULT_PRESET = "a100-25g"
