"""Layer placements whose replicas share an expert's tokens evenly."""

from collections.abc import Iterable, Sequence

from grace_moe.placement import LayerPlacement, even_weights
from grace_moe.planning.groups.partition import Groups


def layer_of_groups(layer_id: int, groups: Groups, num_experts: int) -> LayerPlacement:
    """A layer without replicas: `groups[d]` on device d."""
    device = [0] * num_experts
    for index, group in enumerate(groups):
        for expert in group:
            device[expert] = index
    return layer_of_devices(layer_id, [(d,) for d in device])


def layer_of_devices(layer_id: int, devices_of_expert: Iterable[Sequence[int]]) -> LayerPlacement:
    """A layer of these devices, the first of each expert its primary."""
    devices = tuple(tuple(int(device) for device in row) for row in devices_of_expert)
    return LayerPlacement(layer_id=layer_id, devices_of_expert=devices, replica_weights=even_weights(devices))
