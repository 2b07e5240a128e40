"""The plan that the plug-ins' tests give to stand-ins of the engines."""

from grace_moe.placement import LayerPlacement, Placement, even_weights
from grace_moe.topology import Topology

LAYERS, EXPERTS, SLOTS, RANKS = 2, 4, 8, 4
HELD = [[0, 1, 1, 2, 2, 3, 3, 0], [3, 2, 1, 0, 0, 1, 2, 3]]


def placement(layer_ids=(1, 3), weights=None, shape="2x2"):
    layers = []
    for layer_id, row in zip(layer_ids, HELD, strict=True):
        devices = tuple(tuple(slot // 2 for slot in range(SLOTS) if row[slot] == expert) for expert in range(EXPERTS))
        layers.append(LayerPlacement(layer_id=layer_id, devices_of_expert=devices, replica_weights=weights or even_weights(devices)))
    return Placement(topology=Topology.parse(shape), num_experts=EXPERTS, layers=tuple(layers))
