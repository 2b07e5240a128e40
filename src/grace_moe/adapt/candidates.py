"""What layers may become, what that saves on requests that they were not planned on, and which of it is sure enough together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from grace_moe.adapt.judge import Gain, balance_of, cost_per_token, gain_of, sum_of
from grace_moe.adapt.prices import Prices
from grace_moe.adapt.request_costs import RequestCosts, request_costs
from grace_moe.placement import LayerPlacement, Placement, loads_of_layer
from grace_moe.trace import RoutingTrace, order_of_requests


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What one layer may become."""

    layer: LayerPlacement
    gain: Gain
    moved: int
    """Expert copies to load."""
    from_other_nodes: int
    balance: float
    """Busiest device over the mean, on the requests that judge."""


class Judge:
    """What candidates of each layer save over what serves, on the same requests for all."""

    def __init__(self, serving: Placement, judged_on: RoutingTrace, prices: Prices, seed: int) -> None:
        self._serving, self._prices, self._seed = serving, prices, seed
        self._ids = [judged_on.topk_ids[:, index].astype(np.int64) for index in range(judged_on.num_layers)]
        self._requests, _ = order_of_requests(judged_on)
        self._served = [self._costs(index, layer) for index, layer in enumerate(serving.layers)]

    def served_balance(self, index: int) -> float:
        """Busiest device over the mean, of a layer as it serves."""
        return balance_of(self._served[index])

    def may_pay(self, index: int, horizon: float) -> bool:
        """Whether a move could pay over so many tokens, were the layer to cost nothing after it."""
        most = float(cost_per_token(self._served[index], self._prices)[0])
        return most * horizon > min(self._prices.local_move, self._prices.move)

    def candidate(self, index: int, layer: LayerPlacement) -> Candidate:
        """One that was planned on other requests."""
        costs = self._costs(index, layer)
        moved, far = moves_of(layer, self._serving, index)
        gain = gain_of(costs, self._served[index], self._prices, seed=self._seed)
        return Candidate(layer=layer, gain=gain, moved=moved, from_other_nodes=far, balance=balance_of(costs))

    def _costs(self, index: int, layer: LayerPlacement) -> RequestCosts:
        return request_costs(layer, self._serving.topology, self._serving.replica_choice, self._ids[index], self._requests)


def moves_of(layer: LayerPlacement, serving: Placement, index: int) -> tuple[int, int]:
    """Copies that a layer has to load to become this, and those of them from other nodes."""
    loads, far = loads_of_layer(layer, serving.layers[index], serving.topology)
    return int(loads.sum()), int(far.sum())


def worth_of(candidates: Iterable[Candidate], prices: Prices, horizon: float) -> float:
    """Copies that layers save together over so many tokens in 95% of bootstrap samples, less those that their moves are worth."""
    known = list(candidates)
    moves = sum(prices.of_moves(one.moved, one.from_other_nodes) for one in known)
    return sum_of(one.gain for one in known).low * horizon - moves


def surely_together(
    candidates: Mapping[int, Candidate], prices: Prices, horizon: float, taken: Mapping[int, Candidate] | None = None
) -> dict[int, Candidate]:
    """Layer -> candidate: those that are worth most together, with those that are taken already.

    Layers err apart, in part: what they save together is surer than what each saves. They come in the order of their own worth, and end
    where one more would make all together worth less.
    """
    taken = dict(taken or {})
    ranked = sorted(candidates, key=lambda index: -worth_of([candidates[index]], prices, horizon))
    paying = [index for index in ranked if _mean_worth(candidates[index], prices, horizon) > 0]
    best, most = taken, worth_of(taken.values(), prices, horizon)
    for index in paying:
        taken = {**taken, index: candidates[index]}
        worth = worth_of(taken.values(), prices, horizon)
        if worth > most:
            best, most = taken, worth
    return best


def _mean_worth(candidate: Candidate, prices: Prices, horizon: float) -> float:
    return candidate.gain.mean * horizon - prices.of_moves(candidate.moved, candidate.from_other_nodes)
