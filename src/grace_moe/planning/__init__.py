"""From a trace and a topology to a placement."""

from grace_moe.planning.groups.affinity import affinity_matrix, layer_loads
from grace_moe.planning.groups.partition import Groups, utilisation
from grace_moe.planning.paper.spectral import spectral_groups
from grace_moe.planning.planner import DEFAULT_METHOD, METHODS, equal_slots, plan
from grace_moe.planning.request import PlannedLayers, PlanRequest, Progress

__all__ = [
    "DEFAULT_METHOD",
    "METHODS",
    "Groups",
    "PlanRequest",
    "PlannedLayers",
    "Progress",
    "affinity_matrix",
    "equal_slots",
    "layer_loads",
    "plan",
    "spectral_groups",
    "utilisation",
]
