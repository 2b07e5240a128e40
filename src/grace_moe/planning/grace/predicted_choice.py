"""What replica choice will do with tokens under a placement: the one door from our planner to `choice`.

Four steps ask: prices of nodes (8), packing (9), the forecast (11) and the costs of sources (13). Each has another placement to ask about.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grace_moe.choice.cover import visited_nodes
from grace_moe.choice.joint import JointChoiceTable, host_masks, joint_choice_table
from grace_moe.choice.tables import choice_table
from grace_moe.cost.sent import Sends, copies_between_nodes
from grace_moe.placement import LayerPlacement
from grace_moe.topology import Topology


@dataclass(frozen=True, kw_only=True)
class PredictedChoice:
    """One layer's replica choice for T tokens from each of N source nodes. R rows are chosen for apart: tokens, or each pair by itself."""

    table: JointChoiceTable
    ids: npt.NDArray[np.int64]
    """`[R, k]`, -1 = none."""
    token: npt.NDArray[np.int64]
    """`[R]` whose row it is."""
    visited: npt.NDArray[np.int64]
    """`[R, N]` mask of the nodes whose replicas may serve the row; all bits where replicas are drawn by weight alone."""
    stays: npt.NDArray[np.float64]
    """`[N]` chance that a device of the node takes its own replica, where it has one, before any is drawn."""
    copies: npt.NDArray[np.float64]
    """`[T, N]` what the token's node sends to others."""

    @property
    def hosts(self) -> npt.NDArray[np.int64]:
        """`[E]` mask of the nodes that hold each expert."""
        return host_masks(self.table)


def predict_choice(
    layer: LayerPlacement, topology: Topology, ids: npt.NDArray[np.int64], seed: int, sends: Sends = "nodes"
) -> PredictedChoice:
    """Predict by the layer's own policy, else by joint choice.

    Args:
        ids: `[T, k]`, -1 = none.
        sends: what of a token counts as copies.
    """
    table = joint_choice_table(layer, topology)
    policy = layer.replica_choice or "joint"
    token, stays = np.arange(len(ids)), np.zeros(topology.num_nodes)
    if policy == "joint":
        visited = visited_nodes(ids, table, layer_id=layer.layer_id, seed=seed)
    elif policy == "wrr":
        visited = np.full((len(ids), topology.num_nodes), -1)
    if policy == "joint" and sends == "nodes":
        copies = np.bitwise_count(visited.view(np.uint64)).astype(np.float64) - 1
    else:
        copies = _copies_as_drawn(layer, topology, ids, seed, sends)
    if policy == "tar":
        token, ids = pairs_apart(ids)
        visited = _nearest_nodes(ids, host_masks(table), topology.num_nodes)
        stays = 1 / topology.devices_of_nodes[1]
    return PredictedChoice(table=table, ids=ids, token=token, visited=visited, stays=stays, copies=copies)


def pairs_apart(ids: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Each (token, expert) pair as a token of its own: `[P]` its token, and `[P, 1]` its expert.

    Args:
        ids: `[T, k]`, -1 = none.
    """
    token, k = np.nonzero(ids >= 0)
    return token, ids[token, k][:, None]


def _nearest_nodes(pairs: npt.NDArray[np.int64], hosts: npt.NDArray[np.int64], nodes: int) -> npt.NDArray[np.int64]:
    """`[P, N]` mask of the nodes that may serve a pair from each node: that node where it holds the expert, else all.

    Args:
        pairs: `[P, 1]`; hosts: `[E]` mask of the nodes that hold each expert.
    """
    own = np.int64(1) << np.arange(nodes)
    return np.where(hosts[pairs] & own, own, -1)


def _copies_as_drawn(
    layer: LayerPlacement, topology: Topology, ids: npt.NDArray[np.int64], seed: int, sends: Sends
) -> npt.NDArray[np.float64]:
    """`[T, N]` copies from the first device of each node, by the draws that the runtime makes."""
    table = choice_table(layer, topology, "joint")
    everywhere = layer.replica_choice == "wrr"  # a pair's replica is then the same wherever the token comes from
    copies = np.empty((len(ids), topology.num_nodes))
    for node, first in enumerate(topology.devices_of_nodes[0]):
        sources = np.full(len(ids), first)
        if not node or not everywhere:
            devices = table.choose(layer.layer_id, ids, sources, np.arange(len(ids)), seed=seed)
        copies[:, node] = copies_between_nodes(sends, devices, sources, topology)
    return copies


def chosen_devices(
    layer: LayerPlacement,
    topology: Topology,
    ids: npt.NDArray[np.int64],
    sources: npt.NDArray[np.int64],
    seed: int,
    tokens: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.int64]:
    """`[T, k]` device that computes each pair under the layer's own policy, else under joint choice, -1 = none.

    Args:
        ids: `[T, k]`, -1 = none.
        sources: `[T]` source device of each token.
        tokens: `[T]` number of each, which draws go by; None = 0, 1, ...
    """
    hosts = layer.devices_of_expert
    if all(len(row) == 1 for row in hosts):  # nothing to choose
        return np.asarray(np.append(np.array(hosts)[:, 0], -1)[ids])
    table = choice_table(layer, topology, "joint")
    tokens = np.arange(len(ids)) if tokens is None else tokens
    chosen: npt.NDArray[np.int64] = table.choose(layer.layer_id, ids, sources, tokens, seed=seed)
    return chosen
