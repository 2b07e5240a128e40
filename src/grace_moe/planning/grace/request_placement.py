"""Step 4, on demand: plan for a front-end that sends each request to one node.

Placed requests even the load out by themselves: topics may stay together. So the layers are planned once as if loads were certain, and
again with a node for each request; requests may then change theirs. The planning that follows starts from these copies, knows each
request's node, and judges balance with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from grace_moe.choice.front_end import place_requests
from grace_moe.placement import LayerPlacement, Placement
from grace_moe.planning.grace.node_names import align_nodes, rename_nodes, share_out
from grace_moe.planning.grace.problem import LayerProblem
from grace_moe.planning.grace.search.node_copies import copies_on_nodes
from grace_moe.planning.grace.source_costs import request_costs
from grace_moe.planning.grace.tuning import plan_layers_once
from grace_moe.planning.task import PlannedLayers, PlanningTask
from grace_moe.trace import order_of_requests


def with_requests_placed(problems: Sequence[LayerProblem], threads: int, on_layer: Callable[[], None]) -> list[LayerProblem]:
    """The problems with a node for every request, and copies to begin from that suit them."""
    layers = plan_layers_once([replace(problem, loads_certain=True) for problem in problems], threads, on_layer)
    placed = _shared_out(problems, _named_alike(problems, layers))
    return _shared_out(placed, plan_layers_once([replace(problem, loads_certain=True) for problem in placed], threads, on_layer))


def _shared_out(problems: Sequence[LayerProblem], layers: Sequence[LayerPlacement]) -> list[LayerProblem]:
    """The problems with each request on a node where it is cheap under these layers, and the layers' copies to begin from."""
    node_of_request = share_out(request_costs(problems, layers).sum(axis=0))
    return [
        replace(
            problem,
            start=copies_on_nodes(layer, problem.topology, problem.slots),
            serving=None,
            node_of_request=node_of_request,
        )
        for problem, layer in zip(problems, layers, strict=True)
    ]


def _named_alike(problems: Sequence[LayerProblem], layers: Sequence[LayerPlacement]) -> list[LayerPlacement]:
    """The same layers, their nodes named so that a request's node is the same in all."""
    names = align_nodes(request_costs(problems, layers), problems[0].seed)
    return [rename_nodes(layer, row.tolist(), problems[0].topology) for layer, row in zip(layers, names, strict=True)]


def source_devices(task: PlanningTask, planned: PlannedLayers, *, requests_placed: bool) -> npt.NDArray[np.int64]:
    """`[T]` source device of each token of the trace.

    Args:
        requests_placed: whether a front-end places requests; else all devices take them in turn.
    """
    request, _ = order_of_requests(task.trace)
    topology = task.topology
    if not requests_placed:
        return request % topology.num_devices
    placement = Placement(topology=topology, num_experts=task.num_experts, layers=planned.layers, replica_choice=planned.replica_choice)
    devices: npt.NDArray[np.int64] = place_requests(placement, task.trace)[request]
    return devices
