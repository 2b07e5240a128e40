"""Step 2: plans by load (EPLB) where nothing is known for the search, or there are more nodes than it takes."""

from __future__ import annotations

from grace_moe.choice.node_sets import MAX_MASK_NODES
from grace_moe.planning.baselines.eplb import eplb
from grace_moe.planning.task import PlannedLayers, PlanningTask

MANY_NODES = f"more nodes than the search takes ({MAX_MASK_NODES}): placed by load (eplb), replicas chosen jointly"
COUNTS_ONLY = "the trace has counts only, not which experts fire together: placed by load (eplb)"


def plan_by_load(task: PlanningTask) -> PlannedLayers | None:
    """EPLB's layers and a note that says why; None where the search can plan."""
    if task.topology.num_nodes > MAX_MASK_NODES:
        planned = eplb(task)
        return PlannedLayers(layers=planned.layers, replica_choice="joint", notes=(*planned.notes, MANY_NODES))
    if task.trace.counts_only:
        planned = eplb(task)
        return PlannedLayers(layers=planned.layers, replica_choice="tar", notes=(*planned.notes, COUNTS_ONLY))
    return None
