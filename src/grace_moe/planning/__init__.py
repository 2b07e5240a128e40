"""From a trace and a topology to a placement."""

from grace_moe.choice import place_requests
from grace_moe.planning.groups.affinity import affinity_matrix
from grace_moe.planning.planner import DEFAULT_METHOD, METHODS, equal_slots, plan
from grace_moe.planning.task import PlanningTask, Progress, Redundancy

__all__ = [
    "DEFAULT_METHOD",
    "METHODS",
    "PlanningTask",
    "Progress",
    "Redundancy",
    "affinity_matrix",
    "equal_slots",
    "place_requests",
    "plan",
]
