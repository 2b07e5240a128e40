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
from grace_moe.placement import LayerPlacement
from grace_moe.topology import Topology


@dataclass(frozen=True, kw_only=True)
class PredictedChoice:
    """One layer's replica choice for T tokens from each of N source nodes."""

    table: JointChoiceTable
    visited: npt.NDArray[np.int64]
    """`[T, N]` mask of the nodes whose replicas may serve the token; all bits where replicas are drawn by weight alone."""
    copies: npt.NDArray[np.float64]
    """`[T, N]` nodes other than the source that the token is sent to."""

    @property
    def hosts(self) -> npt.NDArray[np.int64]:
        """`[E]` mask of the nodes that hold each expert."""
        return host_masks(self.table)


def predict_choice(layer: LayerPlacement, topology: Topology, ids: npt.NDArray[np.int64], seed: int) -> PredictedChoice:
    """Predict by the layer's own policy (`wrr`), else by joint choice.

    Args:
        ids: `[T, k]`, -1 = none.
    """
    table = joint_choice_table(layer, topology)
    if layer.replica_choice == "wrr":
        anywhere = np.full((len(ids), topology.num_nodes), -1)
        return PredictedChoice(table=table, visited=anywhere, copies=_copies_by_weight(layer, topology, ids, seed))
    visited = visited_nodes(ids, table, layer_id=layer.layer_id, seed=seed)
    return PredictedChoice(table=table, visited=visited, copies=np.bitwise_count(visited.view(np.uint64)).astype(np.float64) - 1)


def _copies_by_weight(layer: LayerPlacement, topology: Topology, ids: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.float64]:
    """`[T, N]` copies where a pair's replica is the same wherever the token comes from."""
    table = choice_table(layer, topology, "wrr")
    devices = table.choose(layer.layer_id, ids, np.zeros(len(ids), np.int64), np.arange(len(ids)), seed=seed)
    nodes = np.where(devices >= 0, topology.node_of_device[devices], -1)
    reached = (nodes[:, :, None] == np.arange(topology.num_nodes)).any(axis=1)
    copies: npt.NDArray[np.float64] = reached.sum(axis=1, keepdims=True) - reached.astype(np.float64)
    return copies


def chosen_devices(
    layer: LayerPlacement, topology: Topology, ids: npt.NDArray[np.int64], sources: npt.NDArray[np.int64], seed: int
) -> npt.NDArray[np.int64]:
    """`[T, k]` device that computes each pair under joint choice, -1 = none.

    Args:
        ids: `[T, k]`, -1 = none.
        sources: `[T]` source device of each token.
    """
    table = joint_choice_table(layer, topology)
    chosen: npt.NDArray[np.int64] = table.choose(layer.layer_id, ids, sources, np.arange(len(ids)), seed=seed)
    return chosen
