"""Everything that the report's page shows, worked out from a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import numpy.typing as npt

from grace_moe.cost.step import Setting
from grace_moe.evaluation import Comparison, ComparisonRow
from grace_moe.report.affinity import LayerAffinity, typical_layer
from grace_moe.report.served import Served, served
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace, expert_loads

BEFORE, AFTER = "linear", "grace"
"""Methods that the page sets side by side: what a cluster does without a plan, and ours."""

Floats = npt.NDArray[np.float64]


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
    served: Served | None
    """The plan's worth in milliseconds; None where no model was named."""

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


def report_content(
    comparison: Comparison,
    *,
    memory: Sequence[ComparisonRow] = (),
    seed: int = 0,
    command: str = "",
    setting: Setting | None = None,
) -> ReportContent:
    """Work out the page of a comparison that has rows of `BEFORE` and `AFTER`.

    Args:
        memory: rows of ours under several memory budgets (`evaluation.over_memory`).
        seed: of the plans.
        command: the command line that makes the page.
        setting: how a model is served; None = no verdict. Ours is judged with the memory that is fastest there.
    """
    placements = {row.method: row for row in comparison.rows}
    loads = expert_loads(comparison.measured_on)
    return ReportContent(
        comparison=comparison,
        memory=tuple(memory),
        expert_load=loads / np.maximum(loads.mean(axis=1, keepdims=True), 1e-12),
        affinity=typical_layer(comparison, placements[BEFORE], placements[AFTER]),
        seed=seed,
        version=version("grace-moe"),
        command=command,
        served=None if setting is None else served(comparison, placements[BEFORE], [placements[AFTER], *memory], setting, seed=seed),
    )
