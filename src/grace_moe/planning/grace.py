"""Our planner: placement, replicas and their weights as one problem, on the true objective, for routing not yet seen.

Per layer (`joint.layer`): (1) search which experts each node holds, replicas included, to minimise the nodes that a token must reach
under joint replica choice, with a price on the imbalance that the future may bring; (2) pack each node's experts on its devices, equal
slots each; (3) solve the split of each expert's tokens among its replicas, so that devices come out even; (4) estimate the
balance on requests to come, and pay more for it, or fall back to EPLB's, where it would fall behind EPLB's.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from grace_moe.errors import MismatchError, UsageError
from grace_moe.placement import Placement
from grace_moe.planning.baselines.eplb import eplb
from grace_moe.planning.joint_choice import MAX_EXACT_NODES
from grace_moe.planning.request import PlannedLayers, PlanRequest, by_layer

if TYPE_CHECKING:
    from grace_moe.planning.joint.layer import LayerProblem, PlannedLayer

MANY_NODES = "more nodes than the exact search takes (8): placed by load (eplb), replicas chosen jointly"
COST_TOKENS = 12_000
"""Tokens that tell what a request costs from each node."""
BY_LOAD = "nothing to gain within the tolerance on balance: placed by load (eplb)"


def grace(
    request: PlanRequest,
    *,
    price: float = 4.0,
    tolerance: float = 1.015,
    request_placement: bool = False,
    effort: float = 1.0,
    threads: int = 2,
) -> PlannedLayers:
    """Plan every layer jointly. Every device gets the same number of slots: `slots_per_device`, else by redundancy (1.25).

    Args:
        price: copies per token that a unit of expected squared imbalance of the nodes is worth; less of it buys less traffic.
        tolerance: load of the busiest device that is balanced enough, over EPLB's at the same slots, both as expected on
            requests to come. Where a layer exceeds it, its price is raised.
        request_placement: plan for a front-end that sends requests to nodes by `planning.request_placement`.
        effort: multiplies the moves that the search tries; its time is proportional.
        threads: layers planned at once; the plan does not depend on it.

    Raises:
        UsageError: an option out of range, or nodes that requests can't be placed on.
        MismatchError: the placement to start from is of another model, topology or number of slots.
    """
    if not 0 < effort <= 1000 or threads < 1:
        raise UsageError(f"effort {effort}, threads {threads}: use an effort above 0, up to 1000, and at least one thread")
    if not price >= 0 or not tolerance >= 1:
        raise UsageError(f"price {price}, tolerance {tolerance}: use a price of 0 or more and a tolerance of 1 or more")
    topology, trace = request.topology, request.trace
    if topology.num_nodes > MAX_EXACT_NODES:
        by_load = eplb(request)
        return PlannedLayers(layers=by_load.layers, replica_choice="joint", notes=(*by_load.notes, MANY_NODES))
    from grace_moe.planning.joint.alignment import share_out
    from grace_moe.planning.joint.layer import LayerProblem, plan_layer
    from grace_moe.planning.joint.node_search import copies_on_nodes

    if request_placement and trace.request_ids is None:
        raise UsageError(
            f"{trace.source}: request_ids: none, so that requests can't be placed; record them, or plan without request_placement"
        )
    if request_placement and len({tuple(device.relative_speed for device in node.devices) for node in topology.nodes}) > 1:
        raise UsageError(f"request_placement needs nodes that are alike, and those of {topology.source} are not; plan without it")
    starts = None if request.start is None else _starts(request, request.start)
    _, request_of_token = np.unique(trace.requests, return_inverse=True)
    problems = [
        LayerProblem(
            layer_id=layer_id,
            ids=trace.topk_ids[:, index].astype(np.int64),
            request=request_of_token,
            experts=request.num_experts,
            topology=topology,
            slots=request.equal_slots,
            start=None if starts is None else starts[index],
            price=price,
            tolerance=tolerance,
            effort=effort,
            seed=(request.seed * 1_000_003 + index) % 2**32,
        )
        for index, layer_id in enumerate(trace.layer_ids)
    ]
    done = 0

    def plan_all(problems: Sequence[LayerProblem]) -> list[PlannedLayer]:
        nonlocal done
        found = []
        with ThreadPoolExecutor(threads) as pool:  # the search releases the interpreter lock
            for layer in pool.map(plan_layer, problems):
                found.append(layer)
                done += 1
                if request.progress is not None:
                    request.progress(done, len(problems) * (2 if request_placement else 1))
        return found

    # Where requests are placed, they even the load out: topics may then stay together, and balance is judged afterwards.
    planned = plan_all([replace(problem, steady=True, tolerance=np.inf) for problem in problems] if request_placement else problems)
    if request_placement:
        planned = _named_alike(problems, planned)
        _, costs = _costs(problems, planned)
        node_of_request = share_out(costs.sum(axis=0))
        again = [
            replace(problem, start=copies_on_nodes(found.layer, topology, problem.slots), node_of_request=node_of_request)
            for problem, found in zip(problems, planned, strict=True)
        ]
        planned = plan_all(again)
    of_experts, _ = _costs(problems, planned)
    layers = [replace(found.layer, source_costs=costs) for found, costs in zip(planned, of_experts, strict=True)]
    return PlannedLayers(
        layers=tuple(layers),
        replica_choice="joint",
        notes=by_layer([(found.layer.layer_id, (BY_LOAD,)) for found in planned if found.by_load]),
    )


def _starts(request: PlanRequest, start: Placement) -> list[npt.NDArray[np.int64]]:
    """Per layer, the copies `[N, E]` that each node of an existing placement holds, its empty slots filled."""
    from grace_moe.planning.joint.node_search import copies_on_nodes

    if start.topology.shape != request.topology.shape or start.num_experts != request.num_experts:
        raise MismatchError(
            f"{start.source}: {start.num_experts} experts on {start.topology.shape}, but the plan is for {request.num_experts} on "
            f"{request.topology.shape}; start from a placement of this model and topology, or from none"
        )
    if start.layer_ids != request.trace.layer_ids:
        raise MismatchError(f"{start.source}: layers: not those of {request.trace.source}; start from a placement of this model")
    if int(start.slots_per_device().max()) > request.equal_slots:
        raise MismatchError(
            f"{start.source}: {int(start.slots_per_device().max())} slots on a device, but the plan allows {request.equal_slots}; "
            "give more slots, or plan from none"
        )
    return [copies_on_nodes(layer, request.topology, request.equal_slots) for layer in start.layers]


def _costs(
    problems: Sequence[LayerProblem], planned: Sequence[PlannedLayer]
) -> tuple[list[tuple[tuple[float, ...], ...]], npt.NDArray[np.float64]]:
    """Per layer, the costs of each expert from each node (`costs_of_experts`); and `[layers, requests, N]` of each request."""
    from grace_moe.planning.joint.alignment import costs_of_experts, source_costs

    of_experts, of_requests = [], []
    for problem, found in zip(problems, planned, strict=True):
        step = -(-len(problem.ids) // COST_TOKENS) or 1
        ids, requests = problem.ids[::step], problem.request[::step]
        costs = source_costs(found.layer, problem.topology, ids, problem.seed)
        of_experts.append(costs_of_experts(costs, ids, problem.experts))
        total = np.zeros((int(problem.request.max(initial=-1)) + 1, costs.shape[1]))
        np.add.at(total, requests, costs)
        of_requests.append(total)
    return of_experts, np.stack(of_requests)


def _named_alike(problems: Sequence[LayerProblem], planned: Sequence[PlannedLayer]) -> list[PlannedLayer]:
    """The same layers, their nodes named so that a request's node is the same in all."""
    from grace_moe.planning.joint.alignment import align_nodes, rename_nodes

    _, costs = _costs(problems, planned)
    names = align_nodes(costs, problems[0].seed)
    return [
        replace(found, layer=rename_nodes(found.layer, row.tolist(), problem.topology))
        for problem, found, row in zip(problems, planned, names, strict=True)
    ]
