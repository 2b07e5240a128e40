"""What the cluster is: nodes, devices and links."""

from grace_moe.topology.model import DEFAULT_PRESET, PRESETS, Device, Link, Node, Topology

__all__ = ["DEFAULT_PRESET", "PRESETS", "Device", "Link", "Node", "Topology"]
