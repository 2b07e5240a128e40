"""Which node a request should be sent to: the one that holds its experts, told from its first tokens.

The placement carries a number per layer, expert and node: the copies that a token which chose the expert costs from that node, over its
mean over nodes. A front-end adds these up over a request's first tokens and takes the node with the least sum. A node that is already
several requests ahead of the others is left out.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from grace_moe.errors import MismatchError, UsageError
from grace_moe.placement import Placement, check_same_model
from grace_moe.trace import RoutingTrace, order_of_requests

FIRST_TOKENS = 32
"""Tokens of a request that tell where it should go."""
LEAD = 2
"""Most requests a device that a node may be ahead of any other."""


def request_costs(placement: Placement, trace: RoutingTrace, first_tokens: int = FIRST_TOKENS) -> npt.NDArray[np.float64]:
    """`[requests, N]` what each request would cost from each node, by its first tokens; requests in order of appearance.

    Raises:
        MismatchError: the placement carries no costs, or is of another model.
        UsageError: no first tokens.
    """
    if any(not layer.source_costs for layer in placement.layers):
        raise MismatchError(f"{placement.source}: source_costs: none, so requests can't be placed; plan with method grace")
    check_same_model(placement, trace)
    if first_tokens < 1:
        raise UsageError(f"first_tokens {first_tokens} is out of range; use 1 or more")
    request, position = order_of_requests(trace)
    first = position < first_tokens
    costs = np.zeros((int(request.max(initial=-1)) + 1, placement.topology.num_nodes))
    for index, layer in enumerate(placement.layers):
        none = np.zeros((1, placement.topology.num_nodes))
        table = np.concatenate([np.array(layer.source_costs), none])  # the last row is the choice "none"
        np.add.at(costs, request[first], table[trace.topk_ids[first, index]].sum(axis=1))
    return costs


def place_requests(placement: Placement, trace: RoutingTrace, first_tokens: int = FIRST_TOKENS) -> npt.NDArray[np.int64]:
    """`[requests]` node of each request, placed as they come: the cheapest of those not too far ahead. See `request_costs`."""
    costs = request_costs(placement, trace, first_tokens)
    devices = np.array([len(node.devices) for node in placement.topology.nodes])
    placed = np.zeros(len(devices))
    nodes = np.empty(len(costs), dtype=np.int64)
    for request, cost in enumerate(costs):
        ahead = placed / devices - (placed / devices).min()
        nodes[request] = np.argmin(np.where(ahead < LEAD, cost, np.inf))
        placed[nodes[request]] += 1
    return nodes
