"""A placement of two experts on two nodes, and a trace in which even tokens choose expert 0, odd ones expert 1."""

import numpy as np

from grace_moe.placement import LayerPlacement, Placement, even_weights
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace

DEVICES = ((0, 1), (2, 3))


def placement(costs=((-0.5, 0.5), (0.5, -0.5))):
    layer = LayerPlacement(layer_id=0, devices_of_expert=DEVICES, replica_weights=even_weights(DEVICES), source_costs=costs)
    return Placement(topology=Topology.parse("2x2"), num_experts=2, layers=(layer,), replica_choice="joint")


def trace(tokens=40, vocabulary=10):
    token_ids = np.arange(tokens, dtype=np.int32) % vocabulary
    return RoutingTrace(
        topk_ids=(token_ids % 2).astype(np.int16)[:, None, None],
        num_experts=2,
        layer_ids=(0,),
        request_ids=np.zeros(tokens, np.int32),
        token_ids=token_ids,
    )
