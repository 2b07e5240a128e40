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
"""Intra-node and cross-node link of well-known clusters; the first is the paper's (docs/method.md#what-the-paper-measured)."""
DEFAULT_PRESET = "a100-25g"
