"""Contiguous blocks of experts: what Transformers and vLLM do unless told otherwise."""

from grace_moe.planning.groups.partition import Groups
from grace_moe.planning.request import PlannedLayers, PlanRequest, layer_of_groups, no_replicas


def even_sizes(num_experts: int, num_devices: int) -> list[int]:
    """Sizes that differ by at most one; the first devices have the larger ones."""
    share, extra = divmod(num_experts, num_devices)
    return [share + (device < extra) for device in range(num_devices)]


def contiguous_groups(num_experts: int, num_devices: int) -> Groups:
    """Experts in order, in blocks whose sizes differ by at most one."""
    groups, start = [], 0
    for size in even_sizes(num_experts, num_devices):
        groups.append(tuple(range(start, start + size)))
        start += size
    return tuple(groups)


def linear(request: PlanRequest) -> PlannedLayers:
    """Expert e on device floor(e D / E) where D divides E; else the first devices hold one expert more, as in vLLM.

    Reads nothing of the trace but its number of experts. `redundancy` has no effect.
    """
    groups = contiguous_groups(request.num_experts, request.num_devices)
    layers = tuple(layer_of_groups(layer_id, groups, request.num_experts) for layer_id, _ in request.layers())
    return PlannedLayers(layers=layers, notes=no_replicas(request, "linear"))
