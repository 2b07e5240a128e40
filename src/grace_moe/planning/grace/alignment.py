"""One name for a node in all layers: which node is called first is free in every layer, so that requests can stay on theirs.

Permuting equal nodes in a layer changes neither its traffic nor its balance. Names are chosen so that what a request prefers
in one layer is what it prefers in the others: by turns, requests go where they are cheapest over all layers (equal shares), and each
layer's nodes are named by the requests that they suit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from grace_moe.choice.cover import visited_nodes
from grace_moe.choice.joint import joint_choice_table
from grace_moe.choice.tables import choice_table
from grace_moe.placement import LayerPlacement
from grace_moe.topology import Topology

_BATCH = 1024
_STARTS = 8
_ROUNDS = 30


def source_costs(layer: LayerPlacement, topology: Topology, ids: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.float64]:
    """`[T, N]` nodes other than the source that each token visits from each source node."""
    if layer.replica_choice == "wrr":  # drawn alike wherever the token comes from
        table = choice_table(layer, topology, "wrr")
        devices = table.choose(layer.layer_id, ids, np.zeros(len(ids), np.int64), np.arange(len(ids)), seed=seed)
        reached = (np.where(devices >= 0, topology.node_of_device[devices], -1)[:, :, None] == np.arange(topology.num_nodes)).any(axis=1)
        costs: npt.NDArray[np.float64] = reached.sum(axis=1, keepdims=True) - reached.astype(np.float64)
        return costs
    masks = visited_nodes(ids, joint_choice_table(layer, topology), layer_id=layer.layer_id, seed=seed)
    return np.bitwise_count(masks.view(np.uint64)).astype(np.float64) - 1


def costs_of_experts(costs: npt.NDArray[np.float64], ids: npt.NDArray[np.int64], experts: int) -> tuple[tuple[float, ...], ...]:
    """`[E, N]` mean over the tokens that chose an expert of their cost from each node, over its mean over nodes; rounded.

    Args:
        costs: `[T, N]` from `source_costs`.
        ids: `[T, k]`, -1 = none.
    """
    over = costs - costs.mean(axis=1, keepdims=True)
    token, k = np.nonzero(ids >= 0)
    total = np.zeros((experts, costs.shape[1]))
    np.add.at(total, ids[token, k], over[token])
    count = np.bincount(ids[token, k], minlength=experts)
    mean = np.round(total / np.maximum(count, 1)[:, None], 4) + 0.0  # no -0.0
    return tuple(tuple(float(cost) for cost in row) for row in mean)


def share_out(costs: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """`[requests]` node of each at the least cost, where every node takes as many of every `_BATCH` requests.

    Args:
        costs: `[requests, N]`.
    """
    requests, nodes = costs.shape
    shared = np.empty(requests, dtype=np.int64)
    for first in range(0, requests, _BATCH):
        batch = costs[first : first + _BATCH]
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
    for start in range(_STARTS):
        names = np.stack([rng.permutation(nodes) if start else np.arange(nodes) for _ in range(layers)])
        last = np.inf
        for _ in range(_ROUNDS):
            total = np.take_along_axis(costs, names[:, None, :], axis=2).sum(axis=0)
            node_of_request = share_out(total)
            reached = total[np.arange(requests), node_of_request].sum()
            if reached >= last - 1e-9:
                break
            last = reached
            of_node = np.eye(nodes)[node_of_request]  # [requests, N]
            for layer in range(layers):
                old, new = linear_sum_assignment(costs[layer].T @ of_node)
                names[layer, new] = old
        if last < least:
            best, least = names.copy(), last
    return best


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
