"""Occult's placement: devices filled one after another with the experts that collaborate most.

Source: arXiv 2505.13345 (ICML 2025). The paper's body was out of reach: the greedy is rebuilt from summaries, and as the
choice of each device's first expert is not certain, both readings are here.
"""

import numpy as np
import numpy.typing as npt

from grace_moe.planning.groups.affinity import affinity_matrix
from grace_moe.planning.groups.contiguous import even_sizes
from grace_moe.planning.groups.even_layers import layer_of_groups
from grace_moe.planning.groups.partition import Groups, as_groups
from grace_moe.planning.notes import no_replicas
from grace_moe.planning.option_values import check_choice
from grace_moe.planning.task import PlannedLayers, PlanningTask

SEED_RULES = ("farthest", "degree")


def occult_groups(affinity: npt.NDArray[np.int64], num_devices: int, *, seed_rule: str = "farthest") -> Groups:
    """Groups whose sizes differ by at most one.

    (1) A device's first expert: `farthest`, the one with the least affinity to all placed so far (the very first: with
    the most affinity in all), or `degree`, the one with the most affinity in all. (2) Until it is full, the device takes
    the expert with the most affinity to its group. Ties go to the lower number.

    Args:
        affinity: `[experts, experts]`.
    """
    num_experts = len(affinity)
    degree = affinity.sum(axis=1)
    free = np.ones(num_experts, dtype=bool)
    groups: list[list[int]] = []
    for size in even_sizes(num_experts, num_devices):
        group: list[int] = []
        while len(group) < size:
            if group:
                wanted = affinity[:, group].sum(axis=1)
            elif groups and seed_rule == "farthest":
                wanted = -affinity[:, ~free].sum(axis=1)
            else:
                wanted = degree
            candidates = np.flatnonzero(free)
            expert = int(candidates[wanted[candidates].argmax()])
            group.append(expert)
            free[expert] = False
        groups.append(group)
    return as_groups(groups)


def occult(task: PlanningTask, *, seed_rule: str = "farthest") -> PlannedLayers:
    """Occult's rescheduled placement, without pruning. `redundancy` has no effect.

    Args:
        seed_rule: `farthest` or `degree`; see `occult_groups`.

    Raises:
        UsageError: another seed rule.
    """
    check_choice("seed_rule", seed_rule, SEED_RULES)
    experts = task.num_experts
    layers = tuple(
        layer_of_groups(layer_id, occult_groups(affinity_matrix(ids, experts), task.num_devices, seed_rule=seed_rule), experts)
        for layer_id, ids in task.layers()
    )
    return PlannedLayers(layers=layers, notes=no_replicas(task, "occult"))
