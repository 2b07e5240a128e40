"""ExFlow: experts placed so that a token, on its way from layer to layer, seldom changes node or device.

Source: arXiv 2401.08383 (IPDPS 2024), for top-1 models; rebuilt by its description. The paper's ILP (all layers at once,
by recursive bipartition, a minute a level) is replaced by coordinate descent on the same objective: with its neighbours
fixed, a layer's assignment under equal counts is a transportation problem, solved exactly. As in the paper's recursion the
dear crossings come first: nodes, then the devices inside each node.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from grace_moe.errors import UsageError
from grace_moe.planning.groups.contiguous import even_sizes
from grace_moe.planning.groups.even_layers import layer_of_devices
from grace_moe.planning.groups.transitions import transitions
from grace_moe.planning.notes import no_replicas
from grace_moe.planning.option_values import check_choice, is_within
from grace_moe.planning.task import PlannedLayers, PlanningTask

VIEWS = ("pairs", "top1")
STARTS = 4
MAX_STARTS = 1000
MAX_SWEEPS = 50
"""Sweeps stop earlier, where one brings nothing: a handful is usual."""

Ints = npt.NDArray[np.int64]


def crossings(flows: Sequence[Ints], parts: Sequence[Ints]) -> int:
    """Flow between experts of different parts, over all neighbouring layers.

    Args:
        flows: `[layers - 1][experts, experts]`.
        parts: `[layers][experts]` part of each expert.
    """
    return sum(int(flow[before[:, None] != after].sum()) for flow, before, after in zip(flows, parts, parts[1:], strict=False))


def fewest_crossings(flows: Sequence[Ints], counts: Sequence[int], generator: np.random.Generator, *, starts: int = STARTS) -> list[Ints]:
    """`[layers][experts]` part of each expert: coordinate descent, the best of several starts.

    Layer 0 starts in contiguous blocks (later starts: in blocks of a random order), each further layer from the one before;
    then sweeps backwards and forwards set one layer at a time by both of its neighbours, until none helps.

    Args:
        flows: `[layers - 1][experts, experts]`.
        counts: `[parts]` experts of each in every layer.
    """
    slots = np.repeat(np.arange(len(counts)), counts)
    best: list[Ints] = []
    for start in range(starts if len(counts) > 1 and flows else 1):
        parts = [slots if start == 0 else slots[generator.permutation(len(slots))]]
        for flow in flows:
            parts.append(_settle(flow.T @ _members(parts[-1], counts), slots))
        _sweep(flows, parts, slots, counts)
        if not best or crossings(flows, parts) < crossings(flows, best):
            best = parts
    return best


def _sweep(flows: Sequence[Ints], parts: list[Ints], slots: Ints, counts: Sequence[int]) -> None:
    """Improve the parts in place."""
    last = len(parts) - 1
    now = crossings(flows, parts)
    for _ in range(MAX_SWEEPS):
        for layer in [*range(last, -1, -1), *range(1, last + 1)]:
            stays = np.zeros((len(slots), len(counts)), dtype=np.int64)
            if layer:
                stays += flows[layer - 1].T @ _members(parts[layer - 1], counts)
            if layer < last:
                stays += flows[layer] @ _members(parts[layer + 1], counts)
            parts[layer] = _settle(stays, slots)
        before, now = now, crossings(flows, parts)
        if now >= before:
            return


def _members(part: Ints, counts: Sequence[int]) -> Ints:
    """`[experts, parts]` 1 where the expert is in the part."""
    return np.equal(part[:, None], np.arange(len(counts))).astype(np.int64)


def _settle(stays: Ints, slots: Ints) -> Ints:
    """`[experts]` part of each, so that most flow stays: exact under the counts, as an assignment of experts to slots.

    Args:
        stays: `[experts, parts]` flow that stays where the expert is in the part.
        slots: `[experts]` part of each slot.
    """
    return np.asarray(slots[linear_sum_assignment(stays[:, slots], maximize=True)[1]], dtype=np.int64)


def exflow(task: PlanningTask, *, view: str = "pairs", starts: int = STARTS) -> PlannedLayers:
    """ExFlow's placement. `redundancy` has no effect: it makes no replicas.

    Args:
        view: what a top-k token's way is. `pairs`: from each of its experts to each of the next layer's. `top1`: from the
            expert named first to the next layer's first, as the paper has it (routers name the heaviest first).
        starts: descents, of which the best is kept, 1 to 1000.

    Raises:
        UsageError: an option out of range.
    """
    check_choice("view", view, VIEWS)
    if not isinstance(starts, int) or not is_within(starts, 1, MAX_STARTS):
        raise UsageError(f"starts {starts!r} is out of range; use a whole number from 1 to {MAX_STARTS}")
    topology, experts = task.topology, task.num_experts
    k = task.trace.top_k if view == "pairs" else 1
    flows, former = [], None
    for _, ids in task.layers():
        if former is not None:
            flows.append(transitions(former[:, :k], ids[:, :k], experts))
        former = ids
    sizes = np.array(even_sizes(experts, task.num_devices))
    generator = np.random.default_rng(task.seed)
    # Step 1: nodes.
    devices_of_node = [list(topology.devices_of_node(node)) for node in range(topology.num_nodes)]
    nodes = fewest_crossings(flows, [int(sizes[devices].sum()) for devices in devices_of_node], generator, starts=starts)
    # Step 2: devices inside each node; what crosses nodes costs the same on any of them.
    placed = np.empty((task.trace.num_layers, experts), dtype=np.int64)
    for node, devices in enumerate(devices_of_node):
        members = [np.flatnonzero(part == node) for part in nodes]
        inside = [flow[np.ix_(a, b)] for flow, a, b in zip(flows, members, members[1:], strict=False)]
        parts = fewest_crossings(inside, sizes[devices].tolist(), generator, starts=starts)
        for layer, part in enumerate(parts):
            placed[layer, members[layer]] = devices[0] + part
    layers = tuple(layer_of_devices(layer_id, [(d,) for d in row]) for layer_id, row in zip(task.trace.layer_ids, placed, strict=True))
    return PlannedLayers(layers=layers, notes=no_replicas(task, "exflow"))
