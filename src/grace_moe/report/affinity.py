"""Which experts of a layer are chosen together, and whether they live together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grace_moe.evaluation import Comparison, ComparisonRow
from grace_moe.placement import Placement
from grace_moe.planning import affinity_matrix
from grace_moe.topology import Topology

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class LayerAffinity:
    """How often the experts of one layer are chosen together, and where they are."""

    layer_id: int
    """The model's own number."""
    counts: Ints
    """`[experts, experts]` tokens that chose both."""
    together: tuple[float, float]
    """Share of the co-chosen pairs that some node holds both of: before, after."""
    order: tuple[Ints, Ints]
    """`[experts]` experts by their primary's device: before, after."""
    sizes: tuple[Ints, Ints]
    """`[devices]` primaries of each device: before, after."""


def typical_layer(comparison: Comparison, before: ComparisonRow, after: ComparisonRow) -> LayerAffinity:
    """The layer whose gain is the median over the layers."""
    trace, topology = comparison.measured_on, comparison.topology
    name = "cross_node" if topology.num_nodes > 1 else "intra_node"
    gain: Ints = getattr(before.evaluation.copies, name) - getattr(after.evaluation.copies, name)
    layer = int(np.argsort(gain, kind="stable")[len(gain) // 2])
    counts = affinity_matrix(trace.topk_ids[:, layer], trace.num_experts)
    sides = [_side(row.placement, layer, topology) for row in (before, after)]
    shares = [float((counts * common).sum() / max(1, counts.sum())) for _, _, common in sides]
    return LayerAffinity(
        layer_id=trace.layer_ids[layer],
        counts=counts,
        together=(shares[0], shares[1]),
        order=(sides[0][0], sides[1][0]),
        sizes=(sides[0][1], sides[1][1]),
    )


def _side(placement: Placement, layer: int, topology: Topology) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
    """Order and sizes by primary, and whether a node holds both of two experts `[experts, experts]`."""
    devices = placement.layers[layer].devices_of_expert
    primary = np.array([d[0] for d in devices])
    holds = np.zeros((len(devices), topology.num_devices if topology.num_nodes == 1 else topology.num_nodes))
    for expert, row in enumerate(devices):
        holds[expert, list(row) if topology.num_nodes == 1 else topology.node_of_device[list(row)]] = 1
    return np.argsort(primary, kind="stable"), np.bincount(primary, minlength=topology.num_devices), holds @ holds.T > 0
