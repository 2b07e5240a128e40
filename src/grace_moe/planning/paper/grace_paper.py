"""GRACE-MoE to the letter (docs/method.md): hierarchical grouping, dynamic replication, topology-aware replica choice.

The paper is arXiv 2509.25041.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from grace_moe.errors import UsageError
from grace_moe.placement import REPLICA_CHOICES, LayerPlacement
from grace_moe.planning.groups.affinity import affinity_matrix, layer_loads
from grace_moe.planning.notes import by_layer
from grace_moe.planning.option_values import check_choice, is_within
from grace_moe.planning.paper.grouping import GroupingDraft, flat_draft, hierarchical_draft
from grace_moe.planning.paper.knee import FALLBACK, knee_ratio
from grace_moe.planning.paper.replication import Replication, polling_weights, predict_loads_as_printed, replicate
from grace_moe.planning.paper.sizes import SizeRule, controlled_sizes, free_sizes, uniform_sizes
from grace_moe.planning.task import PlannedLayers, PlanningTask

GROUPINGS = ("hierarchical", "uniform", "controlled", "fully")
REPLICATIONS: dict[str, int | None] = {"dynamic": None, "fixed": 1, "none": 0}
"""Secondary replicas of each hot expert; None = by Eq. 3. `fixed` is the paper's FR."""
KNEES = ("model", "layer")
PREDICTIONS = ("conserved", "printed")
REPLICAS_LIMITED = "the slot limit left out replicas, or moved them to other devices"


def grace_paper(
    task: PlanningTask,
    *,
    grouping: str = "hierarchical",
    r: float | str = "knee",
    replication: str = "dynamic",
    replica_choice: str = "tar",
    knee: str = "model",
    prediction: str = "conserved",
) -> PlannedLayers:
    """Plan every layer by the paper's method. `redundancy` has no effect: Eq. 3 decides the number of replicas.

    Args:
        grouping: `hierarchical` (nodes fully non-uniform, then devices controlled), or over all devices at once:
            `uniform`, `controlled`, `fully` (non-uniform).
        r: ratio of controlled non-uniform sizes, or `knee`: one for all layers, where utilisation stops paying for
            deviation. `uniform` and `fully` don't use it.
        replication: `dynamic` (Eq. 3), `fixed` (one replica of each hot expert) or `none`.
        replica_choice: `tar` or `wrr`.
        knee: whether r's knee is one for the `model`, or each `layer` has its own. The paper has one a model, and doesn't say
            how layers count towards it.
        prediction: Eq. 4's share of each instance: `conserved`, the replicated experts' load over their instances, as the
            text says; or `printed`, the heaviest group's whole load over them, as the formula does. Only weights depend on it.

    Raises:
        UsageError: an option out of range, or fewer experts than devices.
    """
    check_choice("grouping", grouping, GROUPINGS)
    check_choice("replication", replication, tuple(REPLICATIONS))
    check_choice("replica_choice", replica_choice, REPLICA_CHOICES)
    check_choice("knee", knee, KNEES)
    check_choice("prediction", prediction, PREDICTIONS)
    drafts = [_draft(affinity_matrix(ids, task.num_experts), grouping, task) for _, ids in task.layers()]
    notes: tuple[str, ...] = ()
    if knee == "model":
        rule, notes = _size_rule(grouping, r, drafts)
        rules = [SizesOfLayer(rule)] * len(drafts)
    else:
        rules = [SizesOfLayer(*_size_rule(grouping, r, [draft])) for draft in drafts]
    layers, layer_notes = [], []
    for index, layer_id in enumerate(task.trace.layer_ids):
        held = drafts[index].hold(rules[index].rule)
        loads = layer_loads(task.trace.topk_ids[:, index], task.num_experts)
        placed = replicate(loads, held.groups, replicas=REPLICATIONS[replication], limits=task.slot_limits)
        layers.append(_layer(layer_id, loads, placed, prediction))
        layer_notes.append((layer_id, rules[index].notes + held.notes + (REPLICAS_LIMITED,) * placed.limited))
    if task.redundancy is not None:
        notes += (f"redundancy {task.redundancy} has no effect: grace_paper's replication rule decides the number of replicas",)
    return PlannedLayers(layers=tuple(layers), replica_choice=replica_choice, notes=notes + by_layer(layer_notes))


class SizesOfLayer(NamedTuple):
    """A rule for group sizes, and what to say of it."""

    rule: SizeRule
    notes: tuple[str, ...] = ()


def _draft(affinity: npt.NDArray[np.int64], grouping: str, task: PlanningTask) -> GroupingDraft:
    if grouping == "hierarchical":
        return hierarchical_draft(affinity, task.topology, task.slot_limits, seed=task.seed)
    return flat_draft(affinity, task.slot_limits, seed=task.seed)


def _layer(layer_id: int, loads: npt.NDArray[np.int64], placed: Replication, prediction: str) -> LayerPlacement:
    predicted = placed.predicted_loads
    if prediction == "printed":
        predicted = predict_loads_as_printed(loads, placed.devices_of_expert, len(predicted))
    weights = polling_weights(placed.devices_of_expert, predicted)
    return LayerPlacement(layer_id=layer_id, devices_of_expert=placed.devices_of_expert, replica_weights=weights)


def _size_rule(grouping: str, r: float | str, drafts: list[GroupingDraft]) -> tuple[SizeRule, tuple[str, ...]]:
    if r != "knee" if isinstance(r, str) else not is_within(r, 0, 1):
        raise UsageError(f"r {r!r} is out of range; use 'knee' or a ratio from 0 to 1")
    if grouping == "uniform":
        return uniform_sizes, ()
    if grouping == "fully":
        return free_sizes, ()
    if not isinstance(r, str):
        return partial(controlled_sizes, ratio=r), ()
    knee = knee_ratio(drafts)
    note = f"r = {knee}, at the knee" if knee is not None else f"r = {FALLBACK}: utilisation over deviation has no knee"
    return partial(controlled_sizes, ratio=FALLBACK if knee is None else knee), (note,)
