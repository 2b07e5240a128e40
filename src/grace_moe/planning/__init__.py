"""From a trace and a topology to a placement."""

from grace_moe.planning.affinity import affinity_matrix, layer_loads
from grace_moe.planning.groups import Groups, utilisation
from grace_moe.planning.planner import DEFAULT_METHOD, METHODS, plan
from grace_moe.planning.replica_choice import (
    DRAW_BITS,
    ReplicaChoiceTable,
    choose_devices,
    chosen_devices,
    draw,
    replica_choice_table,
    replica_choice_tables,
)
from grace_moe.planning.request import PlannedLayers, PlanRequest, Progress
from grace_moe.planning.spectral import spectral_groups

__all__ = [
    "DEFAULT_METHOD",
    "DRAW_BITS",
    "METHODS",
    "Groups",
    "PlanRequest",
    "PlannedLayers",
    "Progress",
    "ReplicaChoiceTable",
    "affinity_matrix",
    "choose_devices",
    "chosen_devices",
    "draw",
    "layer_loads",
    "plan",
    "replica_choice_table",
    "replica_choice_tables",
    "spectral_groups",
    "utilisation",
]
