"""What layers may become, and what that is worth by requests that they were not planned on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from grace_moe.adapt.judge import LOW, Gain, Trial, balance_of, cost_per_token, gains_of
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

    def __init__(self, serving: Placement, judged_on: RoutingTrace, prices: Prices) -> None:
        self.serving, self.prices = serving, prices
        self._ids = [judged_on.topk_ids[:, index].astype(np.int64) for index in range(judged_on.num_layers)]
        self._requests, _ = order_of_requests(judged_on)
        self._served = [self._costs(index, layer) for index, layer in enumerate(serving.layers)]

    def served_balance(self, index: int) -> float:
        """Busiest device over the mean, of a layer as it serves."""
        return balance_of(self._served[index])

    def served_cost(self, index: int) -> float:
        """Copies per token of a layer as it serves, balance priced in."""
        return float(cost_per_token(self._served[index], self.prices)[0])

    def may_pay(self, index: int, horizon: float) -> bool:
        """Whether a move could pay over so many tokens, were the layer to cost nothing after it."""
        return self.served_cost(index) * horizon > min(self.prices.local_move, self.prices.move)

    def trial(self, layers: Mapping[int, LayerPlacement], indices: Sequence[int]) -> Trial:
        """Of layers by their indices; one that is not among `layers` stays as it serves."""
        costs = [self._costs(index, layers[index]) if index in layers else self._served[index] for index in indices]
        return Trial(candidates=costs, serving=[self._served[index] for index in indices])

    def _costs(self, index: int, layer: LayerPlacement) -> RequestCosts:
        return request_costs(layer, self.serving.topology, self.serving.replica_choice, self._ids[index], self._requests)


def candidates_of(
    judges: Sequence[Judge], planned: Sequence[Mapping[int, LayerPlacement]], seed: int, *, chance_of_less: float = LOW
) -> dict[int, Candidate]:
    """What layers may become, judged together.

    Args:
        judges: one, or one of each half of the requests.
        planned: for each of them, layers that were planned on other requests.
    """
    indices = sorted(set().union(*planned))
    if not indices:
        return {}
    trials = [judge.trial(layers, indices) for judge, layers in zip(judges, planned, strict=True)]
    gains = gains_of(trials, judges[0].prices, seed=seed, chance_of_less=chance_of_less)
    found = {}
    for place, (index, gain) in enumerate(zip(indices, gains, strict=True)):
        layers = [of[index] for of in planned if index in of]
        moves = np.array([moves_of(layer, judges[0].serving, index) for layer in layers]).sum(axis=0) / len(planned)
        moved, far = np.ceil(moves).astype(int).tolist()
        balance = float(np.mean([balance_of(trial.candidates[place]) for trial in trials]))
        found[index] = Candidate(layer=layers[0], gain=gain, moved=moved, from_other_nodes=far, balance=balance)
    return found


def moves_of(layer: LayerPlacement, serving: Placement, index: int) -> tuple[int, int]:
    """Copies that a layer has to load to become this, and those of them from other nodes."""
    loads, far = loads_of_layer(layer, serving.layers[index], serving.topology)
    return int(loads.sum()), int(far.sum())
