"""One name for a node in all layers: which node is called first is free in every layer, so that requests can stay on theirs.

Permuting equal nodes in a layer changes neither its traffic nor its balance. Two assignments take turns until neither helps. Requests go
where they are cheapest over all layers, as many to each node; then each layer names its nodes by the requests that they suit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from grace_moe.placement import LayerPlacement
from grace_moe.planning.constants import NAMING_ROUNDS, NAMING_STARTS, SHARED_REQUESTS
from grace_moe.topology import Topology


def share_out(costs: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """`[requests]` node of each at the least cost, where every node takes as many of every `SHARED_REQUESTS` requests.

    Args:
        costs: `[requests, N]`.
    """
    requests, nodes = costs.shape
    shared = np.empty(requests, dtype=np.int64)
    for first in range(0, requests, SHARED_REQUESTS):
        batch = costs[first : first + SHARED_REQUESTS]
        seats = np.repeat(np.arange(nodes), -(-len(batch) // nodes))
        rows, chosen = linear_sum_assignment(batch[:, seats])
        shared[first + rows] = seats[chosen]
    return shared


def align_nodes(costs: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.int64]:
    """`[layers, N]` which node of each layer is to be called node n.

    Args:
        costs: `[layers, requests, N]` of each request from each node.
    """
    layers, requests, nodes = costs.shape
    best, least = np.tile(np.arange(nodes), (layers, 1)), np.inf
    if requests < 2 * nodes:
        return best
    rng = np.random.default_rng(seed)
    for start in range(NAMING_STARTS):
        names = np.stack([rng.permutation(nodes) if start else np.arange(nodes) for _ in range(layers)])
        reached = _settle_names(costs, names)
        if reached < least:
            best, least = names, reached
    return best


def _settle_names(costs: npt.NDArray[np.float64], names: npt.NDArray[np.int64]) -> float:
    """Improve the names `[layers, N]` in place, as `align_nodes` says; returns the copies of all requests."""
    requests, nodes = costs.shape[1:]
    last = np.inf
    for _ in range(NAMING_ROUNDS):
        total = np.take_along_axis(costs, names[:, None, :], axis=2).sum(axis=0)
        node_of_request = share_out(total)
        reached = float(total[np.arange(requests), node_of_request].sum())
        if reached >= last - 1e-9:
            break
        last = reached
        of_node = np.eye(nodes)[node_of_request]  # [requests, N]
        for layer in range(len(costs)):
            old, new = linear_sum_assignment(costs[layer].T @ of_node)
            names[layer, new] = old
    return last


def rename_nodes(layer: LayerPlacement, names: Sequence[int], topology: Topology) -> LayerPlacement:
    """The layer with node `names[n]` called n; all nodes must be alike."""
    size = topology.num_devices // topology.num_nodes
    new = np.argsort(names)

    def moved(device: int) -> int:
        return int(new[device // size] * size + device % size)

    return replace(
        layer,
        devices_of_expert=tuple(tuple(moved(d) for d in devices) for devices in layer.devices_of_expert),
        node_prices=tuple(layer.node_prices[name] for name in names) if layer.node_prices else (),
    )
