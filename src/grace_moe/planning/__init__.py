"""From a trace and a topology to a placement."""

from grace_moe.planning.affinity import affinity_matrix, layer_loads
from grace_moe.planning.batch_choice import BATCH_POLICIES, BatchPolicy, batch_policy
from grace_moe.planning.groups import Groups, utilisation
from grace_moe.planning.hashing import DRAW_BITS, draw
from grace_moe.planning.joint_choice import JointChoiceTable, joint_choice_table
from grace_moe.planning.planner import DEFAULT_METHOD, METHODS, plan
from grace_moe.planning.replica_choice import (
    ChoiceTable,
    ReplicaChoiceTable,
    choice_table,
    choice_tables,
    choose_devices,
    decode_choice_tables,
    replica_choice_table,
)
from grace_moe.planning.request import PlannedLayers, PlanRequest, Progress, check_same_model
from grace_moe.planning.request_placement import FIRST_TOKENS, order_of_requests, place_requests
from grace_moe.planning.spectral import spectral_groups

__all__ = [
    "BATCH_POLICIES",
    "DEFAULT_METHOD",
    "DRAW_BITS",
    "FIRST_TOKENS",
    "METHODS",
    "BatchPolicy",
    "ChoiceTable",
    "Groups",
    "JointChoiceTable",
    "PlanRequest",
    "PlannedLayers",
    "Progress",
    "ReplicaChoiceTable",
    "affinity_matrix",
    "batch_policy",
    "check_same_model",
    "choice_table",
    "choice_tables",
    "choose_devices",
    "decode_choice_tables",
    "draw",
    "joint_choice_table",
    "layer_loads",
    "order_of_requests",
    "place_requests",
    "plan",
    "replica_choice_table",
    "spectral_groups",
    "utilisation",
]
