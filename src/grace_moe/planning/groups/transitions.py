"""What flows from a layer's experts to the next layer's, and what a step between two devices costs: for MoETuner and ExFlow.

Both price the way of a token from layer to layer, as if it stayed where its expert computed it. Where tokens go back to
their source after each layer, as in our runtime, nothing is paid on that way: `evaluate` doesn't count it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.topology import Topology
from grace_moe.trace import activations

Ints = npt.NDArray[np.int64]


def transitions(before: npt.NDArray[np.integer[Any]], after: npt.NDArray[np.integer[Any]], num_experts: int) -> Ints:
    """`[experts, experts]` R: tokens that activate i in a layer and j in the next.

    Args:
        before, after: `[tokens, k]` choices of the two layers; -1 counts for nothing.
    """
    return np.asarray((activations(before, num_experts).T @ activations(after, num_experts)).toarray(), dtype=np.int64)


def hop_costs(topology: Topology) -> npt.NDArray[np.float64]:
    """`[devices, devices]` 0 = the same device, 1 = the same node, 2 = another node."""
    node = topology.node_of_device
    costs: npt.NDArray[np.float64] = 1.0 + (node[:, None] != node) - np.eye(len(node))
    return costs


def link_costs(topology: Topology) -> npt.NDArray[np.float64]:
    """`[devices, devices]` seconds per byte, 0 on the same device: by the topology's matrix where it has one, else by kind of link."""
    if topology.bandwidth is not None:
        costs = 1.0 / np.array(topology.bandwidth)
    else:
        intra, cross = (1 / link.bandwidth_bytes_per_s for link in (topology.intra_node, topology.cross_node))
        node = topology.node_of_device
        costs = np.where(node[:, None] == node, intra, cross)
    np.fill_diagonal(costs, 0.0)
    return costs
