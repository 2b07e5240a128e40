"""Experts dealt out in turn: vLLM's `round_robin` placement."""

from grace_moe.planning.groups.even_layers import layer_of_devices
from grace_moe.planning.notes import no_replicas
from grace_moe.planning.task import PlannedLayers, PlanningTask


def round_robin(task: PlanningTask) -> PlannedLayers:
    """Expert e on device e mod D. Reads nothing of the trace but its number of experts. `redundancy` has no effect."""
    devices = [(expert % task.num_devices,) for expert in range(task.num_experts)]
    layers = tuple(layer_of_devices(layer_id, devices) for layer_id, _ in task.loads())
    return PlannedLayers(layers=layers, notes=no_replicas(task, "round_robin"))
