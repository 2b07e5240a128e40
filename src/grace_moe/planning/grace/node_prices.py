"""Step 8: prices of nodes, by which joint choice picks among sets of nodes that serve a token equally well."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grace_moe.placement import MAX_NODE_PRICE, LayerPlacement, even_weights
from grace_moe.planning.constants import FEW_NODES, PRICE_STEP, PRICE_TOKENS, REPLAN_THINNING
from grace_moe.planning.grace.predicted_choice import predict_choice
from grace_moe.planning.grace.problem import LayerProblem
from grace_moe.planning.grace.replica_shares import Hosts, host_table, layer_of_weights
from grace_moe.planning.grace.split import Demand, demand, even_out
from grace_moe.topology import Topology

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class NodePlan:
    """The layer as if each node were one device: what each node computes is known then, but not on which device."""

    prices: tuple[float, ...]
    """`[N]`"""
    cells: Demand
    """Pairs by expert and the nodes that may compute them, under the prices."""
    weights: Floats
    """`[E, R]` of the nodes that hold each expert, in ascending order."""
    problem: LayerProblem
    hosts: Hosts
    """Per expert, the nodes that hold it."""

    @property
    def layer(self) -> LayerPlacement:
        """On nodes instead of devices."""
        return layer_of_weights(self.problem.layer_id, self.hosts, self.weights, self.prices, self.problem.replica_choice)

    @property
    def loads(self) -> Floats:
        """`[N, E]` pairs that each node computes."""
        (where, pairs), nodes = self.cells, len(self.prices)
        (expert, mask), table = where.T, host_table(self.hosts)
        weights = np.zeros((len(table), nodes))
        held, place = np.nonzero(table >= 0)
        weights[held, table[held, place]] = self.weights[held, place]
        part = weights[expert] * (mask[:, None] >> np.arange(nodes) & 1)
        part *= (pairs / part.sum(axis=1))[:, None]
        return np.stack([np.bincount(expert, weights=column, minlength=len(weights)) for column in part.T])


def price_nodes(problem: LayerProblem, ids: npt.NDArray[np.int64], sources: Floats, copies: npt.NDArray[np.int64]) -> NodePlan:
    """Raise the price of nodes that are busier than the mean, round by round; keep the round with the lowest maximum.

    Two nodes know no ties: the source's own is in every set that serves. They get no prices. Nor do nodes where each replica is chosen
    apart, as there are no sets of them.

    Args:
        ids: `[T, k]` of a sample of tokens, -1 = none.
        sources: `[T, N]` chance that each of them comes from each node.
        copies: `[N, E]`.
    """
    hosts: Hosts = tuple(tuple(n for n, held in enumerate(row) if held) for row in copies.T.tolist())
    nodes = len(copies)
    thinning = _thinning(problem, nodes, len(ids))
    price, least = np.array(problem.first_prices or np.zeros(nodes)), np.inf
    best: tuple[tuple[float, ...], Demand, Floats]
    for step in range(problem.price_rounds if nodes > 2 and not problem.replica_choice else 1):
        prices = tuple(round(float(p), 4) for p in price)
        cells, weights, load = _divided(problem, hosts, prices, ids[::thinning], sources[::thinning])
        over = load / max(load.mean(), 1e-12) - 1
        if over.max() < least:
            least, best = over.max(), (prices, cells, weights)
        price = price + over * PRICE_STEP / (1 + step / 2)
        price = np.clip(price - price.min(), 0, MAX_NODE_PRICE)
    prices, cells, weights = best
    if thinning > 1:  # the demand is that of all tokens
        cells, weights, _ = _divided(problem, hosts, prices, ids, sources)
    return NodePlan(prices=prices, cells=cells, weights=weights, problem=problem, hosts=hosts)


def _divided(
    problem: LayerProblem, hosts: Hosts, prices: tuple[float, ...], ids: npt.NDArray[np.int64], sources: Floats
) -> tuple[Demand, Floats, Floats]:
    """The demand under these prices, the weights over nodes that even it out, and the nodes' loads (over speed)."""
    topology = problem.topology
    layer = LayerPlacement(
        layer_id=problem.layer_id,
        devices_of_expert=hosts,
        replica_weights=even_weights(hosts),
        node_prices=prices if any(prices) else (),
        replica_choice=problem.replica_choice,
    )
    choice = predict_choice(layer, Topology.regular(topology.num_nodes, 1), ids, problem.seed)
    cells = demand(choice.ids, choice.visited, choice.hosts, sources[choice.token])
    speed = topology.relative_speed
    capacity = np.bincount(topology.node_of_device, weights=speed) / speed.sum()
    return cells, *even_out(cells, host_table(hosts), np.arange(topology.num_nodes), capacity)


def _thinning(problem: LayerProblem, nodes: int, tokens: int) -> int:
    """Prices are found on one token of this many."""
    if nodes <= 2 or problem.replica_choice:
        return 1
    thinning = 1 if problem.serving is None else REPLAN_THINNING
    return max(thinning, tokens // PRICE_TOKENS) if nodes > FEW_NODES else thinning
