"""Which device holds which expert: the plan, its file and its invariants."""

from grace_moe.placement.difference import PlacementDifference, difference, loads_of_layer
from grace_moe.placement.layer import MAX_NODE_PRICE, REPLICA_CHOICES, LayerPlacement, even_weights, held_by_devices
from grace_moe.placement.model import Placement
from grace_moe.placement.same_model import check_same_model

__all__ = [
    "MAX_NODE_PRICE",
    "REPLICA_CHOICES",
    "LayerPlacement",
    "Placement",
    "PlacementDifference",
    "check_same_model",
    "difference",
    "even_weights",
    "held_by_devices",
    "loads_of_layer",
]
