"""Experts dealt out in turn: vLLM's `round_robin` placement."""

from grace_moe.planning.request import PlannedLayers, PlanRequest, layer_of_devices, no_replicas


def round_robin(request: PlanRequest) -> PlannedLayers:
    """Expert e on device e mod D. Reads nothing of the trace but its number of experts. `redundancy` has no effect."""
    devices = [(expert % request.num_devices,) for expert in range(request.num_experts)]
    layers = tuple(layer_of_devices(layer_id, devices) for layer_id, _ in request.layers())
    return PlannedLayers(layers=layers, notes=no_replicas(request, "round_robin"))
