"""Which replica computes a (token, expert) pair; and which node a front-end sends a request to."""

from grace_moe.choice.batch import BATCH_POLICIES, BatchPolicy, batch_policy
from grace_moe.choice.front_end import (
    FIRST_TOKENS,
    Budget,
    RequestPlacer,
    cost_tables,
    place_requests,
    request_costs,
    token_costs,
)
from grace_moe.choice.hashing import DRAW_BITS, draw
from grace_moe.choice.joint import JointChoiceTable, joint_choice_table
from grace_moe.choice.tables import (
    ChoiceTable,
    ReplicaChoiceTable,
    choice_table,
    choice_tables,
    choose_devices,
    decode_choice_tables,
    replica_choice_table,
)

__all__ = [
    "BATCH_POLICIES",
    "DRAW_BITS",
    "FIRST_TOKENS",
    "BatchPolicy",
    "Budget",
    "ChoiceTable",
    "JointChoiceTable",
    "ReplicaChoiceTable",
    "RequestPlacer",
    "batch_policy",
    "choice_table",
    "choice_tables",
    "choose_devices",
    "cost_tables",
    "decode_choice_tables",
    "draw",
    "joint_choice_table",
    "place_requests",
    "replica_choice_table",
    "request_costs",
    "token_costs",
]
