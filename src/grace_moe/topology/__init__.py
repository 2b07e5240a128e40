"""What the cluster is: nodes, devices and links."""

from grace_moe.topology.model import Topology
from grace_moe.topology.parts import DEFAULT_PRESET, PRESETS, Device, Link, Node, Tier

__all__ = ["DEFAULT_PRESET", "PRESETS", "Device", "Link", "Node", "Tier", "Topology"]
