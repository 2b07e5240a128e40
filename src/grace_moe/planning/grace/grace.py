"""Our planner: placement, replicas and their weights as one problem, on the true objective, for routing not yet seen.

docs/planner.md explains the objective and every step, numbered as the comments here and in the modules that a step calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from grace_moe.placement import LayerPlacement
from grace_moe.planning.constants import DECODE_BATCH, DECODE_COPIES, DECODE_LOAD, IMBALANCE_PRICE, TOLERANCE
from grace_moe.planning.grace.canonical_names import canonical_names, device_order
from grace_moe.planning.grace.decode.problem import DecodeBounds
from grace_moe.planning.grace.decode.weights import with_decode_weights
from grace_moe.planning.grace.fallbacks import CHOICE_FOR, plan_by_load, with_choice
from grace_moe.planning.grace.for_time import plan_layers_for_time
from grace_moe.planning.grace.learnt_costs import with_learnt_costs
from grace_moe.planning.grace.options import GraceOptions, check_task
from grace_moe.planning.grace.problem import LayerProblem, layer_problems
from grace_moe.planning.grace.request_placement import source_devices, with_requests_placed
from grace_moe.planning.grace.source_costs import with_source_costs
from grace_moe.planning.grace.tuning import plan_layers, plan_layers_once
from grace_moe.planning.notes import by_layer, slots_by_memory, whole_slots
from grace_moe.planning.task import PlannedLayers, PlanningTask

BY_LOAD = "no layout of our own within the tolerance on balance: devices as eplb fills them, gathered on nodes"
AS_FAST = "no layout of our own is expected to be faster: devices as eplb fills them"
AS_EVEN = "no layout of our own is expected to be more even: devices as eplb fills them"


def grace(
    task: PlanningTask,
    *,
    price: float = IMBALANCE_PRICE,
    move_price: float = 0.0,
    tolerance: float = TOLERANCE,
    request_placement: bool = False,
    decode: str = "tokens",
    decode_copies: float = DECODE_COPIES,
    decode_load: float = DECODE_LOAD,
    decode_batch: int = DECODE_BATCH,
    effort: float = 1.0,
    threads: int = 2,
) -> PlannedLayers:
    """Plan every layer jointly. Every device gets the same number of slots: `slots_per_device`, else by redundancy (1.25).

    Args:
        price: copies per token that a unit of expected squared imbalance of the nodes is worth; less of it buys less traffic. Where
            requests are unknown, 16 times it: nothing tells then how far loads stray.
        move_price: with a placement to start from, copies per token of a layer that loading one expert on another node is worth; more
            of it moves fewer experts.
        tolerance: load of the busiest device that is balanced enough, over EPLB's at the same slots, mean over layers, both as
            expected on other requests (bootstrap); half a standard deviation must be within it too, two where requests are unknown.
            Infinite: balance is priced and not bounded, and nothing need be foreseen: a plan for copies takes half the time, and one
            for time takes the trace as it is.
        request_placement: plan for a front-end that sends requests to nodes by `choice.place_requests`.
        decode: `tokens` = decode steps choose replicas as prefill does; `experts` = they use fewer of them, so that fewer distinct experts
            are active on a device. Placement and prefill are the same either way.
        decode_copies: share by which copies between nodes may rise in decode for it, over all layers.
        decode_load: share by which the busiest device's pairs may, in each layer.
        decode_batch: tokens of a decode batch over all devices.
        effort: multiplies the moves that the searches try; their time is proportional.
        threads: layers planned at once; the plan does not depend on it.

    Raises:
        UsageError: an option out of range, or more than the search can do on this trace or topology.
        MismatchError: the placement to start from is of another model, topology or number of slots.
    """
    # Step 1: check the options, by themselves and against the trace, the topology and the start.
    options = GraceOptions(
        price=price,
        move_price=move_price,
        tolerance=tolerance,
        request_placement=request_placement,
        decode=decode,
        decode_copies=decode_copies,
        decode_load=decode_load,
        decode_batch=decode_batch,
        effort=effort,
        threads=threads,
    )
    check_task(task, options)
    # Step 2: where the search can't plan, EPLB does.
    planned = plan_by_load(task) or _search(task, options)
    if decode == "tokens":
        return planned
    # Step 15: choose the replicas that decode uses.
    bounds = DecodeBounds(copies=decode_copies, load=decode_load, batch=decode_batch)
    sources = source_devices(task, planned, requests_placed=request_placement)
    return with_decode_weights(planned, task, sources, bounds)


def _search(task: PlanningTask, options: GraceOptions) -> PlannedLayers:
    # Step 3: one problem a layer, in canonical names.
    devices = device_order(task.topology, by_speed=task.setting is None)
    names = canonical_names(task.trace.topk_ids, task.num_experts, devices)
    problems = layer_problems(task, options, names)
    on_layer = _counter(task, passes=3 if options.request_placement else 1 if task.setting is None else 2)
    if options.request_placement:
        # Step 4: find a node for every request.
        problems = with_requests_placed(problems, options.threads, on_layer)
    # Steps 5 to 12: place every layer, at a higher price of imbalance until the expected balance is within the tolerance.
    layers, by_load = _placed(task, problems, options, on_layer)
    # Step 13: what an expert's tokens cost from each node, for a front-end.
    if options.request_placement:
        layers = with_learnt_costs(problems, layers)
    elif task.sends != "everything":
        layers = [with_source_costs(problem, layer) for problem, layer in zip(problems, layers, strict=True)]
    # Step 14: back to the names of the trace.
    choice = CHOICE_FOR[task.sends]
    note = AS_FAST if task.setting is not None else AS_EVEN if task.sends == "everything" else BY_LOAD
    return PlannedLayers(
        layers=tuple(with_choice(own.original(layer), choice) for own, layer in zip(names, layers, strict=True)),
        replica_choice=choice,
        notes=(
            *(whole_slots(task) if task.setting is None else slots_by_memory(task)),
            *by_layer([(layer_id, (note,)) for layer_id in by_load]),
        ),
    )


def _placed(
    task: PlanningTask, problems: Sequence[LayerProblem], options: GraceOptions, on_layer: Callable[[], None]
) -> tuple[list[LayerPlacement], list[int]]:
    """Layers, and the numbers of those that are placed by load."""
    if task.setting is not None:
        chosen = plan_layers_for_time(problems, task.setting, options.tolerance, options.threads, on_layer)
    elif math.isinf(options.tolerance) and task.sends in ("nodes", "pairs"):
        return plan_layers_once(problems, options.threads, on_layer), []  # there is one candidate a layer
    else:
        chosen = plan_layers(problems, options.tolerance, options.threads, on_layer)
    return [candidate.layer for candidate in chosen], [candidate.layer.layer_id for candidate in chosen if candidate.origin == "eplb"]


def _counter(task: PlanningTask, *, passes: int) -> Callable[[], None]:
    """A function that reports one layer more of one pass as done."""
    done = 0

    def on_layer() -> None:
        nonlocal done
        done += 1
        if task.progress is not None:
            task.progress(done, task.trace.num_layers * passes)

    return on_layer
