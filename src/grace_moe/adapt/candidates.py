"""What layers may become, and what that is worth by requests that they were not planned on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from grace_moe.adapt.judge import Gain, balance_of, cost_per_token, gains_of
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

    def worth(self, prices: Prices, horizon: float) -> float:
        """Copies saved over so many tokens, surely, less those that the moves are worth."""
        return self.gain.low * horizon - prices.of_moves(self.moved, self.from_other_nodes)


class Judge:
    """What candidates of layers save over what serves, on the same requests for all."""

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

    def candidates(self, layers: Mapping[int, LayerPlacement]) -> dict[int, Candidate]:
        """One of each of these layers, that were planned on other requests; they are judged together."""
        costs = {index: self._costs(index, layer) for index, layer in layers.items()}
        served = [self._served[index] for index in layers]
        gains = gains_of(list(costs.values()), served, self._prices, seed=self._seed) if layers else []
        found = {}
        for (index, layer), gain in zip(layers.items(), gains, strict=True):
            moved, far = moves_of(layer, self._serving, index)
            found[index] = Candidate(layer=layer, gain=gain, moved=moved, from_other_nodes=far, balance=balance_of(costs[index]))
        return found

    def _costs(self, index: int, layer: LayerPlacement) -> RequestCosts:
        return request_costs(layer, self._serving.topology, self._serving.replica_choice, self._ids[index], self._requests)


def moves_of(layer: LayerPlacement, serving: Placement, index: int) -> tuple[int, int]:
    """Copies that a layer has to load to become this, and those of them from other nodes."""
    loads, far = loads_of_layer(layer, serving.layers[index], serving.topology)
    return int(loads.sum()), int(far.sum())
