"""Our planner: placement, replicas and their weights as one problem, on the true objective, for routing not yet seen.

Per layer (`joint.layer`): (1) search which experts each node holds, replicas included, to minimise the nodes that a token must reach
under joint replica choice, with a price on the imbalance that the future may bring; (2) pack each node's experts on its devices, equal
slots each; (3) solve the split of each expert's tokens among its replicas, so that devices come out even; (4) estimate the
balance on requests to come, and pay more for it, or fall back to EPLB's, where it would fall behind EPLB's.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from grace_moe.errors import UsageError
from grace_moe.planning.baselines.eplb import eplb
from grace_moe.planning.joint_choice import MAX_EXACT_NODES
from grace_moe.planning.request import PlannedLayers, PlanRequest, by_layer

MANY_NODES = "more nodes than the exact search takes (8): placed by load (eplb), replicas chosen jointly"
BY_LOAD = "nothing to gain within the tolerance on balance: placed by load (eplb)"


def grace(request: PlanRequest, *, price: float = 4.0, tolerance: float = 1.015, effort: float = 1.0, threads: int = 2) -> PlannedLayers:
    """Plan every layer jointly. Every device gets the same number of slots: `slots_per_device`, else by redundancy (1.25).

    Args:
        price: copies per token that a unit of expected squared imbalance of the nodes is worth; less of it buys less traffic.
        tolerance: load of the busiest device that is balanced enough, over EPLB's at the same slots, both as expected on
            requests to come. Where a layer exceeds it, its price is raised.
        effort: multiplies the moves that the search tries; its time is proportional.
        threads: layers planned at once; the plan does not depend on it.

    Raises:
        UsageError: an option out of range.
    """
    if not 0 < effort <= 1000 or threads < 1:
        raise UsageError(f"effort {effort}, threads {threads}: use an effort above 0, up to 1000, and at least one thread")
    if not price >= 0 or not tolerance >= 1:
        raise UsageError(f"price {price}, tolerance {tolerance}: use a price of 0 or more and a tolerance of 1 or more")
    topology, trace = request.topology, request.trace
    if topology.num_nodes > MAX_EXACT_NODES:
        planned = eplb(request)
        return PlannedLayers(layers=planned.layers, replica_choice="joint", notes=(*planned.notes, MANY_NODES))
    from grace_moe.planning.joint.layer import LayerProblem, plan_layer

    _, request_of_token = np.unique(trace.requests, return_inverse=True)
    problems = [
        LayerProblem(
            layer_id=layer_id,
            ids=trace.topk_ids[:, index].astype(np.int64),
            request=request_of_token,
            experts=request.num_experts,
            topology=topology,
            slots=request.equal_slots,
            price=price,
            tolerance=tolerance,
            effort=effort,
            seed=(request.seed * 1_000_003 + index) % 2**32,
        )
        for index, layer_id in enumerate(trace.layer_ids)
    ]
    planned_layers = []
    with ThreadPoolExecutor(threads) as pool:  # the search releases the interpreter lock
        for layer in pool.map(plan_layer, problems):
            planned_layers.append(layer)
            if request.progress is not None:
                request.progress(len(planned_layers), len(problems))
    return PlannedLayers(
        layers=tuple(planned.layer for planned in planned_layers),
        replica_choice="joint",
        notes=by_layer([(planned.layer.layer_id, (BY_LOAD,)) for planned in planned_layers if planned.by_load]),
    )
