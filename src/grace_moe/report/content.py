"""Everything that the report's page shows, worked out from a comparison."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from grace_moe.evaluation import Comparison, ComparisonRow, Evaluation
from grace_moe.placement import Placement
from grace_moe.planning import affinity_matrix
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace, expert_loads

BEFORE, AFTER = "linear", "grace"
"""Methods that the page sets side by side: what a cluster does without a plan, and ours."""

Floats = npt.NDArray[np.float64]
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


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """The page, as data."""

    comparison: Comparison
    memory: tuple[ComparisonRow, ...]
    """Ours by ascending memory; empty where it was not asked for."""
    expert_load: Floats
    """`[layers, experts]` tokens that chose each expert, over the layer's mean."""
    affinity: LayerAffinity
    seed: int
    version: str
    command: str
    """What makes the page again."""

    @property
    def before(self) -> ComparisonRow:
        return self.row(BEFORE)

    @property
    def after(self) -> ComparisonRow:
        return self.row(AFTER)

    @property
    def topology(self) -> Topology:
        return self.comparison.topology

    @property
    def trace(self) -> RoutingTrace:
        """The requests that were measured on."""
        return self.comparison.measured_on

    @property
    def traffic(self) -> str:
        """The metric of traffic: copies between nodes, or inside the only node."""
        return "cross_node_copies" if self.topology.num_nodes > 1 else "intra_node_copies"

    def row(self, method: str) -> ComparisonRow:
        """The comparison's row of a method."""
        return next(row for row in self.comparison.rows if row.method == method)

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `grace-moe report --json`: the numbers of the page; no times of this machine, so that runs agree."""
        from grace_moe.report.words import sentence

        return {
            **{name: value for name, value in self.comparison.to_dict().items() if name != "rows"},
            "sentence": sentence(self),
            "rows": [self._numbers(row) for row in self.comparison.rows],
            "memory": [self._numbers(row) for row in self.memory],
            "affinity": {
                "layer_id": self.affinity.layer_id,
                "together_before": self.affinity.together[0],
                "together_after": self.affinity.together[1],
            },
            "seed": self.seed,
            "version": self.version,
            "command": self.command,
        }

    def _numbers(self, row: ComparisonRow) -> dict[str, Any]:
        return {name: value for name, value in row.to_dict(self.topology).items() if name != "plan_seconds"}


def report_content(comparison: Comparison, *, memory: Sequence[ComparisonRow] = (), seed: int = 0, command: str = "") -> ReportContent:
    """Work out the page of a comparison that has rows of `BEFORE` and `AFTER`.

    Args:
        memory: rows of ours under several memory budgets (`evaluation.over_memory`).
        seed: of the plans.
        command: the command line that makes the page.
    """
    from importlib.metadata import version

    placements = {row.method: row for row in comparison.rows}
    loads = expert_loads(comparison.measured_on)
    return ReportContent(
        comparison=comparison,
        memory=tuple(memory),
        expert_load=loads / np.maximum(loads.mean(axis=1, keepdims=True), 1e-12),
        affinity=_typical_layer(comparison, placements[BEFORE], placements[AFTER]),
        seed=seed,
        version=version("grace-moe"),
        command=command,
    )


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


def _mean_over_layers(links: Sequence[sparse.csr_array]) -> Floats:
    mean: Floats = reduce(operator.add, links).toarray() / len(links)
    return mean


def node_traffic(copies: Floats, topology: Topology) -> Floats:
    """`[nodes, nodes]` the same copies by node; the diagonal is inside nodes."""
    member = (topology.node_of_device[:, None] == np.arange(topology.num_nodes)).astype(float)
    summed: Floats = member.T @ copies @ member
    return summed


def device_load(evaluation: Evaluation) -> Floats:
    """`[layers, devices]` load over the layer's mean."""
    load: Floats = evaluation.device_load / np.maximum(evaluation.device_load.mean(axis=1, keepdims=True), 1e-12)
    return load


def _typical_layer(comparison: Comparison, before: ComparisonRow, after: ComparisonRow) -> LayerAffinity:
    """The layer whose gain is the median of the layers': one that neither flatters nor belittles."""
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
