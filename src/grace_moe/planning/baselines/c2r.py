"""C2R's grouping: an expert beside its top collaborators, in groups of equal size.

Source: arXiv 2504.01337 (NAACL 2025). Its routing changes the model's outputs and is left out; its repository has no
placement, so this is rebuilt from the paper's profile: for each expert, the others by co-activation.
"""

import numpy as np
import numpy.typing as npt

from grace_moe.planning.groups.affinity import affinity_matrix, layer_loads
from grace_moe.planning.groups.contiguous import even_sizes
from grace_moe.planning.groups.even_layers import layer_of_groups
from grace_moe.planning.groups.partition import Groups, as_groups
from grace_moe.planning.notes import no_replicas
from grace_moe.planning.task import PlannedLayers, PlanningTask


def c2r_groups(affinity: npt.NDArray[np.int64], loads: npt.NDArray[np.int64], num_devices: int) -> Groups:
    """The heaviest expert not yet placed opens a device and takes its own top collaborators until the device is full.

    Sizes differ by at most one. Ties go to the lower number.

    Args:
        affinity: `[experts, experts]`.
        loads: `[experts]`.
    """
    free = dict.fromkeys(int(expert) for expert in np.argsort(-loads, kind="stable"))
    groups = []
    for size in even_sizes(len(loads), num_devices):
        group: list[int] = []
        if size:
            opener = next(iter(free))
            collaborators = (int(e) for e in np.argsort(-affinity[opener], kind="stable") if e in free and e != opener)
            group = [opener, *(next(collaborators) for _ in range(size - 1))]
        for expert in group:
            del free[expert]
        groups.append(group)
    return as_groups(groups)


def c2r(task: PlanningTask) -> PlannedLayers:
    """Uniform greedy grouping by collaboration. `redundancy` has no effect."""
    experts = task.num_experts
    layers = tuple(
        layer_of_groups(layer_id, c2r_groups(affinity_matrix(ids, experts), layer_loads(ids, experts), task.num_devices), experts)
        for layer_id, ids in task.layers()
    )
    return PlannedLayers(layers=layers, notes=no_replicas(task, "c2r"))
