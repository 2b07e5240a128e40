"""Where a request should be sent: to a rank of the node that holds its experts, as long as no rank is too far ahead.

The placement carries a number per layer, expert and node: the copies that a token which chose the expert costs from that node, over its
mean over nodes. The mean of these over a request's known tokens is what the request costs from each node. A rank takes the request whose
node costs least, where being ahead of the other ranks costs too: a rank that leads by the whole budget costs as much more as nodes
typically differ, and one that leads by more is left out. So a burst of one topic divides by how well each request suits a node, instead of
piling up or being dealt blindly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grace_moe.errors import MismatchError, UsageError
from grace_moe.placement import Placement, check_same_model
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace, order_of_requests

FIRST_TOKENS = 32
"""Tokens of a request that tell where it should go."""
MEMORY = 0.05
"""Share of the newest request in what nodes typically differ by."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How uneven the ranks may become, in tokens; for each rank.

    Raises:
        UsageError: on construction, if one is out of range.
    """

    tokens: float = 1024.0
    """Most that a rank may have been given above the mean of all ranks before it takes another request."""
    horizon: float = 65536.0
    """Tokens of all ranks after which what a rank was given counts 1/e: what was served long ago is over."""

    def __post_init__(self) -> None:
        for name in ("tokens", "horizon"):
            value = getattr(self, name)
            if not 0 < value < np.inf:
                raise UsageError(f"budget: {name} {value!r} is out of range; use a number of tokens above 0")


class RequestPlacer:
    """Gives each request a rank, one after another; the same requests in the same order get the same ranks.

    Ranks are those of data parallelism: rank r has the devices from r * D / R on, all on one node.

    Args:
        ranks: R; None = one for each of the D devices.
        budget: None = the default one.

    Raises:
        UsageError: devices don't divide among so many ranks, or a rank would span nodes.
    """

    def __init__(self, topology: Topology, ranks: int | None = None, budget: Budget | None = None) -> None:
        self.node_of_rank = node_of_ranks(topology, ranks)
        self.budget = Budget() if budget is None else budget
        self.given = np.zeros(len(self.node_of_rank))
        """`[R]` tokens that count as given to each rank."""
        self._spread = 0.0

    @property
    def lead(self) -> Floats:
        """`[R]` tokens that each rank was given above the mean."""
        return np.asarray(self.given - self.given.mean())

    def place(self, costs: Floats, tokens: float) -> int:
        """The rank for a request of so many tokens, which are charged to it.

        Args:
            costs: `[N]` what it costs from each node; all alike where nothing is known of it.
        """
        spread = float(costs.max() - costs.min())
        self._spread = spread if self._spread == 0 else self._spread + MEMORY * (spread - self._spread)
        lead = self.lead
        scores = costs[self.node_of_rank] / max(self._spread, 1e-12) + lead / self.budget.tokens
        room = (lead < self.budget.tokens) | (lead <= lead.min())
        rank = int(np.argmin(np.where(room, scores, np.inf)))
        self.charge(rank, tokens)
        return rank

    def charge(self, rank: int, tokens: float) -> None:
        """Count tokens that a rank computes beyond those of `place`: what was generated, or came another way."""
        self.given *= np.exp(-tokens / self.budget.horizon)
        self.given[rank] += tokens


def node_of_ranks(topology: Topology, ranks: int | None = None) -> npt.NDArray[np.int64]:
    """`[R]` node of each rank of data parallelism. Raises UsageError as `RequestPlacer` says."""
    devices = topology.num_devices
    ranks = devices if ranks is None else ranks
    if ranks < 1 or devices % ranks:
        raise UsageError(f"ranks {ranks}: the {devices} devices of {topology.source} don't divide among them; use a divisor")
    nodes = topology.node_of_device.reshape(ranks, -1)
    if (nodes != nodes[:, :1]).any():
        raise UsageError(f"ranks {ranks}: a rank of {devices // ranks} devices would span nodes of {topology.source}; use more ranks")
    return nodes[:, 0]


def cost_tables(placement: Placement) -> Floats:
    """`[layers, E + 1, N]` costs of each expert from each node; the last row is the choice "none".

    Raises:
        MismatchError: the placement carries no costs.
    """
    if any(not layer.source_costs for layer in placement.layers):
        raise MismatchError(f"{placement.source}: source_costs: none, so requests can't be placed; plan with method grace")
    none = np.zeros((1, placement.topology.num_nodes))
    return np.stack([np.concatenate([np.array(layer.source_costs), none]) for layer in placement.layers])


def token_costs(tables: Floats, topk_ids: npt.NDArray[np.integer]) -> Floats:
    """`[T, N]` what tokens cost from each node by their experts: copies per layer over the mean of the nodes.

    Args:
        tables: from `cost_tables`.
        topk_ids: `[T, layers, k]`, -1 = none.
    """
    total = np.zeros((len(topk_ids), tables.shape[2]))
    for index, table in enumerate(tables):
        total += table[topk_ids[:, index]].mean(axis=1)
    return total / max(1, len(tables))


def request_costs(placement: Placement, trace: RoutingTrace, first_tokens: int = FIRST_TOKENS) -> Floats:
    """`[requests, N]` what each request would cost from each node, a token and layer, by its first tokens; in order of appearance.

    Raises:
        MismatchError: the placement carries no costs, or is of another model.
        UsageError: no first tokens.
    """
    tables = cost_tables(placement)
    check_same_model(placement, trace)
    if first_tokens < 1:
        raise UsageError(f"first_tokens {first_tokens} is out of range; use 1 or more")
    request, position = order_of_requests(trace)
    first = position < first_tokens
    known = np.bincount(request[first])
    costs = np.zeros((len(known), placement.topology.num_nodes))
    np.add.at(costs, request[first], token_costs(tables, trace.topk_ids[first]))
    return costs / np.maximum(known, 1)[:, None]


def place_requests(
    placement: Placement, trace: RoutingTrace, first_tokens: int = FIRST_TOKENS, budget: Budget | None = None
) -> npt.NDArray[np.int64]:
    """`[requests]` device of each request, placed as they come; all of a request's tokens are charged at once. See `request_costs`."""
    costs = request_costs(placement, trace, first_tokens)
    placer = RequestPlacer(placement.topology, budget=budget)
    lengths = np.bincount(order_of_requests(trace)[0])
    return np.array([placer.place(cost, float(tokens)) for cost, tokens in zip(costs, lengths, strict=True)], dtype=np.int64)
