"""Traffic and load of devices, from an evaluation's counts."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import reduce

import numpy as np
import numpy.typing as npt
from scipy import sparse

from grace_moe.evaluation import Evaluation
from grace_moe.topology import Topology

Floats = npt.NDArray[np.float64]


def device_traffic(evaluation: Evaluation, topology: Topology) -> Floats:
    """`[devices, devices]` copies that go from device to device, per token, mean over the layers."""
    copies = np.zeros((topology.num_devices, topology.num_devices))
    sizes = [len(node.devices) for node in topology.nodes]
    first = np.cumsum([0, *sizes[:-1]])
    cross, intra = _mean_over_layers(evaluation.cross_node_links), _mean_over_layers(evaluation.intra_node_links)
    for device, node in enumerate(topology.node_of_device):
        np.add.at(copies[device], topology.rail_peers[device], cross[device])
        copies[device, first[node] : first[node] + sizes[node]] += intra[device, : sizes[node]]
    return copies / max(1, evaluation.num_tokens)


def node_traffic(copies: Floats, topology: Topology) -> Floats:
    """`[nodes, nodes]` the same copies by node; the diagonal is inside nodes."""
    member = (topology.node_of_device[:, None] == np.arange(topology.num_nodes)).astype(float)
    summed: Floats = member.T @ copies @ member
    return summed


def device_load(evaluation: Evaluation) -> Floats:
    """`[layers, devices]` load over the layer's mean."""
    load: Floats = evaluation.device_load / np.maximum(evaluation.device_load.mean(axis=1, keepdims=True), 1e-12)
    return load


def _mean_over_layers(links: Sequence[sparse.csr_array]) -> Floats:
    mean: Floats = reduce(operator.add, links).toarray() / len(links)
    return mean
