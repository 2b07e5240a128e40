"""Step 2: plans by load (EPLB) where nothing is known for the search, or there are more nodes than it takes."""

from __future__ import annotations

from dataclasses import replace

from grace_moe.choice.node_sets import MAX_MASK_NODES
from grace_moe.cost.sent import Sends
from grace_moe.placement import LayerPlacement
from grace_moe.planning.baselines.eplb import eplb
from grace_moe.planning.task import PlannedLayers, PlanningTask
from grace_moe.trace import LoadProfile

_MANY = f"more nodes than the search takes ({MAX_MASK_NODES}): placed by load (eplb), replicas chosen "
MANY_NODES = {"joint": _MANY + "jointly", "tar": _MANY + "near by", "wrr": _MANY + "by weight"}
"""By replica choice."""
COUNTS_ONLY = "the trace has counts only, not which experts fire together: placed by load (eplb)"

CHOICE_FOR: dict[Sends, str] = {"nodes": "joint", "devices": "tar", "pairs": "tar", "everything": "wrr"}
"""How replicas are chosen, by what is sent: near ones where nothing is saved by sending experts the same way; by weight where nothing
is saved at all. Layers of a plan for flat dispatch that do better by joint choice say so themselves."""


def with_choice(layer: LayerPlacement, choice: str) -> LayerPlacement:
    """The layer in a placement of this replica choice: it names its own only where that is another one. Empty was joint."""
    own = layer.replica_choice or "joint"
    return replace(layer, replica_choice="" if own == choice else own)


def plan_by_load(task: PlanningTask) -> PlannedLayers | None:
    """EPLB's layers and a note that says why; None where the search can plan."""
    if task.topology.num_nodes > MAX_MASK_NODES:
        planned, choice = eplb(task), CHOICE_FOR[task.sends]
        return PlannedLayers(layers=planned.layers, replica_choice=choice, notes=(*planned.notes, MANY_NODES[choice]))
    if isinstance(task.recording, LoadProfile):
        planned = eplb(task)
        choice = "wrr" if task.sends == "everything" else "tar"
        return PlannedLayers(layers=planned.layers, replica_choice=choice, notes=(*planned.notes, COUNTS_ONLY))
    return None
