"""Our planner: placement, replicas and their weights as one problem, on the true objective, for routing not yet seen.

Per layer (`joint.layer`): (1) search which experts each node holds, replicas included, to minimise the nodes that a token must reach
under joint replica choice, with a price on the imbalance that the future may bring; (2) pack each node's experts on its devices, equal
slots each; (3) solve the split of each expert's tokens among its replicas, so that devices come out even; (4) estimate the
balance on days to come. Where, mean over layers, it would fall behind EPLB's, all layers pay more for it (`joint.layers`); then each takes
one of its placements, EPLB's devices gathered on nodes (`joint.gathering`) where no other keeps the balance. On demand (`joint.decode`):
(5) choose which of the replicas decode uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from grace_moe.choice.front_end import place_requests
from grace_moe.errors import MismatchError, UsageError
from grace_moe.placement import LayerPlacement, Placement, check_same_model
from grace_moe.planning.baselines.eplb import eplb
from grace_moe.planning.notes import by_layer
from grace_moe.planning.option_values import check_choice, is_within
from grace_moe.planning.task import PlannedLayers, PlanningTask
from grace_moe.trace import order_of_requests

if TYPE_CHECKING:
    from grace_moe.planning.grace.canonical_names import Labels
    from grace_moe.planning.grace.layer_placement import LayerProblem

MAX_NODES = 64
"""As `joint.many_nodes.MAX_NODES`, which is not imported for a fallback: 8 groups of 8 nodes."""
MANY_NODES = "more nodes than the search takes (64): placed by load (eplb), replicas chosen jointly"
DECODE_CHOICES = ("tokens", "experts")
"""What the replica choice of decode goes by: prefill's tables, or few active experts on a device."""
MAX_DECODE_BATCH = 65_536
CAUTION = 16
"""Multiple of the price where requests are unknown."""
COST_TOKENS = 12_000
"""Tokens that tell what a request costs from each node."""
COUNTS_ONLY = "the trace has counts only, not which experts fire together: placed by load (eplb)"
BY_LOAD = "no layout of our own within the tolerance on balance: devices as eplb fills them, gathered on nodes"


def grace(
    request: PlanningTask,
    *,
    price: float = 4.0,
    tolerance: float = 1.015,
    request_placement: bool = False,
    decode: str = "tokens",
    decode_copies: float = 0.05,
    decode_load: float = 0.1,
    decode_batch: int = 64,
    effort: float = 1.0,
    threads: int = 2,
) -> PlannedLayers:
    """Plan every layer jointly. Every device gets the same number of slots: `slots_per_device`, else by redundancy (1.25).

    Args:
        price: copies per token that a unit of expected squared imbalance of the nodes is worth; less of it buys less traffic. Where
            requests are unknown, 16 times it: nothing tells then how far the days stray.
        tolerance: load of the busiest device that is balanced enough, over EPLB's at the same slots, mean over layers, both as
            expected on days to come; half a standard deviation between days is left to it, two where requests are unknown.
        request_placement: plan for a front-end that sends requests to nodes by `planning.request_placement`.
        decode: `tokens` = decode steps choose replicas as prefill does; `experts` = they use fewer of them, so that fewer distinct experts
            are active on a device (`joint.decode`). Placement and prefill are the same either way.
        decode_copies: share by which copies between nodes may rise in decode for it, over all layers.
        decode_load: share by which the busiest device's pairs may, in each layer.
        decode_batch: tokens of a decode batch over all devices.
        effort: multiplies the moves that the search tries; its time is proportional.
        threads: layers planned at once; the plan does not depend on it.

    Raises:
        UsageError: an option out of range, or more than the search can do on this trace or topology.
        MismatchError: the placement to start from is of another model, topology or number of slots.
    """
    check_choice("decode", decode, DECODE_CHOICES)
    if not is_within(decode_copies, 0, 1e6) or not is_within(decode_load, 0, 1e6):
        raise UsageError(f"decode_copies {decode_copies!r}, decode_load {decode_load!r}: use shares from 0 to 1e6")
    if type(decode_batch) is not int or not 1 <= decode_batch <= MAX_DECODE_BATCH:
        raise UsageError(f"decode_batch {decode_batch!r} is out of range; use 1 to {MAX_DECODE_BATCH} tokens")
    if decode == "experts" and request.trace.counts_only:
        raise UsageError(f"{request.trace.source}: counts only, and decode experts needs a trace of tokens; plan with decode tokens")
    planned = _plan(request, price=price, tolerance=tolerance, request_placement=request_placement, effort=effort, threads=threads)
    if decode == "tokens":
        return planned
    from grace_moe.planning.grace.decode import DecodeBounds, with_decode_weights

    bounds = DecodeBounds(copies=decode_copies, load=decode_load, batch=decode_batch)
    sources = _sources(request, planned) if request_placement else order_of_requests(request.trace)[0] % request.num_devices
    return with_decode_weights(planned, request, sources, bounds)


def _plan(request: PlanningTask, *, price: float, tolerance: float, request_placement: bool, effort: float, threads: int) -> PlannedLayers:
    """Placement and the replica choice of both phases."""
    if not is_within(effort, 1e-6, 1000) or type(threads) is not int or threads < 1:
        raise UsageError(f"effort {effort!r}, threads {threads!r}: use an effort above 0, up to 1000, and at least one thread")
    if not is_within(price, 0, 1e6) or not is_within(tolerance, 1, np.inf):
        raise UsageError(f"price {price!r}, tolerance {tolerance!r}: use a price from 0 to 1e6 and a tolerance of 1 or more")
    if type(request_placement) is not bool:
        raise UsageError(f"request_placement {request_placement!r} is neither true nor false; use one of them")
    topology, trace = request.topology, request.trace
    if topology.num_nodes > MAX_NODES:
        if request_placement or request.start is not None:
            raise UsageError(
                f"request_placement and start take up to {MAX_NODES} nodes, and {topology.source} has {topology.num_nodes}; "
                "plan without them"
            )
        by_load = eplb(request)
        return PlannedLayers(layers=by_load.layers, replica_choice="joint", notes=(*by_load.notes, MANY_NODES))
    if trace.counts_only:
        if request_placement or request.start is not None:
            raise UsageError(f"{trace.source}: counts only, and request_placement and start need a trace of tokens; plan without them")
        by_load = eplb(request)
        return PlannedLayers(layers=by_load.layers, replica_choice="tar", notes=(*by_load.notes, COUNTS_ONLY))
    from grace_moe.planning.grace.alignment import share_out
    from grace_moe.planning.grace.canonical_names import Labels, by_speed, device_order, expert_order, renamed
    from grace_moe.planning.grace.independent_units import independent_units
    from grace_moe.planning.grace.layer_placement import LayerProblem
    from grace_moe.planning.grace.search.node_copies import copies_on_nodes
    from grace_moe.planning.grace.tuning import plan_layers

    if request_placement and trace.request_ids is None:
        raise UsageError(
            f"{trace.source}: request_ids: none, so that requests can't be placed; record them, or plan without request_placement"
        )
    if request_placement and len({tuple(device.relative_speed for device in node.devices) for node in topology.nodes}) > 1:
        raise UsageError(f"request_placement needs nodes that are alike, and those of {topology.source} are not; plan without it")
    # Planned by canonical names, so that what experts and devices are called plays no part.
    named = [
        Labels(experts=expert_order(trace.topk_ids[:, index], request.num_experts), devices=device_order(topology))
        for index in range(trace.num_layers)
    ]
    topology = by_speed(topology)
    starts = None if request.start is None else _starts(request, request.start, named)
    _, request_of_token = np.unique(trace.requests, return_inverse=True)
    units = request_of_token if request_placement else independent_units(trace.topk_ids, request_of_token)
    tokens_dealt = units is not request_of_token
    problems = [
        LayerProblem(
            layer_id=layer_id,
            ids=renamed(trace.topk_ids[:, index], named[index].experts),
            request=units,
            tokens_dealt=tokens_dealt,
            experts=request.num_experts,
            topology=topology,
            slots=request.equal_slots,
            start=None if starts is None else copies_on_nodes(starts[index], topology, request.equal_slots),
            serving=None if starts is None else starts[index],
            price=price * (CAUTION if tokens_dealt else 1),
            effort=effort,
            seed=(request.seed * 1_000_003 + index) % 2**32,
            days=request.seed,
        )
        for index, layer_id in enumerate(trace.layer_ids)
    ]
    done = 0

    def plan_all(problems: Sequence[LayerProblem]) -> list[LayerPlacement]:
        def on_layer() -> None:
            nonlocal done
            done += 1
            if request.progress is not None:
                request.progress(done, len(problems) * (2 if request_placement else 1))

        return plan_layers(problems, tolerance, threads, on_layer)

    if request_placement:
        # Placed requests even the load out: topics may stay together, and balance is judged afterwards.
        layers = _named_alike(problems, plan_all([replace(problem, steady=True) for problem in problems]))
        node_of_request = share_out(_request_costs(problems, layers).sum(axis=0))
        problems = [
            replace(problem, start=copies_on_nodes(layer, topology, problem.slots), serving=None, node_of_request=node_of_request)
            for problem, layer in zip(problems, layers, strict=True)
        ]
    layers = plan_all(problems)
    return PlannedLayers(
        layers=tuple(names.own(_with_source_costs(problem, layer)) for names, problem, layer in zip(named, problems, layers, strict=True)),
        replica_choice="joint",
        notes=by_layer([(layer.layer_id, (BY_LOAD,)) for layer in layers if layer.replica_choice]),
    )


def _sources(request: PlanningTask, planned: PlannedLayers) -> npt.NDArray[np.int64]:
    """`[T]` source device of each token where a front-end places the requests; a node's devices take theirs in turn."""
    placement = Placement(
        topology=request.topology, num_experts=request.num_experts, layers=planned.layers, replica_choice=planned.replica_choice
    )
    nodes = place_requests(placement, request.trace)
    devices = np.empty(len(nodes), dtype=np.int64)
    for node in range(request.topology.num_nodes):
        members, here = np.array(request.topology.devices_of_node(node)), np.flatnonzero(nodes == node)
        devices[here] = members[np.arange(len(here)) % len(members)]
    return devices[order_of_requests(request.trace)[0]]


def _starts(request: PlanningTask, start: Placement, named: Sequence[Labels]) -> list[LayerPlacement]:
    """The layers of an existing placement, by canonical names."""
    check_same_model(start, request.trace)
    if start.topology.shape != request.topology.shape:
        raise MismatchError(
            f"{start.source}: topology: {start.topology.shape}, but the plan is for {request.topology.shape}; "
            "start from a placement on this topology, or from none"
        )
    if int(start.slots_per_device().max()) > request.equal_slots:
        raise MismatchError(
            f"{start.source}: {int(start.slots_per_device().max())} slots on a device, but the plan allows {request.equal_slots}; "
            "give more slots, or plan from none"
        )
    return [names.canonical(layer) for names, layer in zip(named, start.layers, strict=True)]


def _sampled_costs(
    problem: LayerProblem, layer: LayerPlacement
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Choices `[T, k]`, requests `[T]` and costs `[T, N]` (`alignment.source_costs`) of a sample of tokens."""
    from grace_moe.planning.grace.alignment import source_costs

    step = -(-len(problem.ids) // COST_TOKENS) or 1
    ids = problem.ids[::step]
    return ids, problem.request[::step], source_costs(layer, problem.topology, ids, problem.seed)


def _with_source_costs(problem: LayerProblem, layer: LayerPlacement) -> LayerPlacement:
    from grace_moe.planning.grace.alignment import costs_of_experts

    ids, _, costs = _sampled_costs(problem, layer)
    return replace(layer, source_costs=costs_of_experts(costs, ids, problem.experts))


def _request_costs(problems: Sequence[LayerProblem], layers: Sequence[LayerPlacement]) -> npt.NDArray[np.float64]:
    """`[layers, requests, N]` copies of each request from each node."""
    num_requests = int(problems[0].request.max(initial=-1)) + 1
    total = np.zeros((len(layers), num_requests, problems[0].topology.num_nodes))
    for index, (problem, layer) in enumerate(zip(problems, layers, strict=True)):
        _, request, costs = _sampled_costs(problem, layer)
        np.add.at(total[index], request, costs)
    return total


def _named_alike(problems: Sequence[LayerProblem], layers: Sequence[LayerPlacement]) -> list[LayerPlacement]:
    """The same layers, their nodes named so that a request's node is the same in all."""
    from grace_moe.planning.grace.alignment import align_nodes, rename_nodes

    names = align_nodes(_request_costs(problems, layers), problems[0].seed)
    return [rename_nodes(layer, row.tolist(), problems[0].topology) for layer, row in zip(layers, names, strict=True)]
