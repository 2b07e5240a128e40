"""Contiguous blocks of experts: what Transformers and vLLM do unless told otherwise."""

from grace_moe.planning.groups.contiguous import contiguous_groups
from grace_moe.planning.groups.even_layers import layer_of_groups
from grace_moe.planning.notes import no_replicas
from grace_moe.planning.task import PlannedLayers, PlanningTask


def linear(task: PlanningTask) -> PlannedLayers:
    """Expert e on device floor(e D / E) where D divides E; else the first devices hold one expert more, as in vLLM.

    Reads nothing of the trace but its number of experts. `redundancy` has no effect.
    """
    groups = contiguous_groups(task.num_experts, task.num_devices)
    layers = tuple(layer_of_groups(layer_id, groups, task.num_experts) for layer_id, _ in task.loads())
    return PlannedLayers(layers=layers, notes=no_replicas(task, "linear"))
