"""Whether to move experts, and which: what is surely saved over a horizon against what moving costs, layer by layer, within a budget.

Candidates of a layer are planned from what serves, at a price for each move: a dear one first, then cheaper ones, until moves of all layers
are over the budget. What a candidate saves is judged on half of the requests, by one that is planned in the same way on the other half.
A layer takes the candidate that is worth most within the budget, or stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from grace_moe.adapt.judge import Gain, balance_of, cost_per_token, gain_of
from grace_moe.adapt.prices import Prices
from grace_moe.adapt.request_costs import RequestCosts, request_costs
from grace_moe.errors import UsageError
from grace_moe.placement import LayerPlacement, Placement, loads_of_layer
from grace_moe.planning.grace.replanning import Copies, LayerReplan, layers_to_replan
from grace_moe.trace import RoutingTrace, order_of_requests

DEARER = (16.0, 8.0, 4.0, 2.0, 1.4, 1.0)
"""Multiples of a move's price to search at, one after another until the moves are over the budget. Not tuned."""
DEAREST = 0.1
"""Copies per token that a move seldom saves: prices begin at most a factor of 4 below, each a quarter of the last. Not tuned."""


@dataclass(frozen=True, kw_only=True)
class DecisionOptions:
    """What a decision may do.

    Raises:
        UsageError: on construction, if one is out of range.
    """

    horizon: float = 1_000_000.0
    """Tokens over which moves must pay."""
    budget: float = 0.1
    """Share of all expert copies that may move."""
    work: int = 100_000
    """Most tokens times nodes, over all layers, that are planned on; at least one layer is. It bounds a decision's time. Not tuned."""
    prices: Prices = field(default_factory=Prices)
    effort: float = 1.0
    """Of the searches, as `plan` has it."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.horizon > 0 or not 0 <= self.budget <= 1 or self.work < 1:
            raise UsageError(
                f"horizon {self.horizon!r}, budget {self.budget!r}, work {self.work!r}: use tokens above 0, a share from 0 to 1, and work "
                "of 1 or more"
            )


@dataclass(frozen=True, kw_only=True)
class Decision:
    """To move to a placement, or to stay."""

    placement: Placement | None
    """To move to; None = stay."""
    reason: str
    moved: int
    """Expert copies to load."""
    from_other_nodes: int
    """Those of them that come from another node."""
    gain: Gain
    """Copies per token, mean over layers, that are expected to be saved."""
    cost: float
    """Of the moves, in copies per token of the horizon, mean over layers."""
    balance: float
    """Busiest device over the mean, mean over the layers that were planned, on the requests that judged: as decided."""
    gain_left: float
    """Copies per token, mean over layers, that the best candidates would save beyond those taken: over the budget, or not surely paying."""
    considered: tuple[int, ...]
    """Indices of the layers that were planned; the others stay as they are."""


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """A candidate of one layer."""

    layer: LayerPlacement
    gain: Gain
    moved: int
    from_other_nodes: int
    balance: float
    """Busiest device over the mean, on the requests that judge."""
    served: float
    """That of the layer as it serves."""
    worth: float
    """Copies saved over the horizon, surely, less those that the moves are worth."""


def decide(serving: Placement, recent: RoutingTrace, options: DecisionOptions, *, order: Sequence[int] | None = None) -> Decision:
    """Decide by a sample of recent tokens. The same arguments give the same decision.

    Args:
        order: indices of the layers that may change; the first ones are planned, as many as `options.work` allows. None = all in order.

    Raises:
        TraceError: the sample has fewer than two requests.
    """
    planned_on, judged_on = recent.split_requests()
    most = max(1, options.work // max(1, planned_on.num_tokens * serving.topology.num_nodes))
    considered = tuple(range(len(serving.layers)) if order is None else order)[:most]
    part = replace(serving, layers=tuple(serving.layers[index] for index in considered))
    judge = _Judge(part, judged_on.of_layers(considered), options)
    budget = int(options.budget * sum(len(row) for layer in serving.layers for row in layer.devices_of_expert))
    proposed, tried = (
        layers_to_replan(tokens.of_layers(considered), part, seed=options.seed, effort=options.effort) for tokens in (recent, planned_on)
    )
    rows = [[judge.choice(i, new.reweighed(), trial.reweighed())] for i, (new, trial) in enumerate(zip(proposed, tried, strict=True))]
    searched = [_Search(index=i, proposed=proposed[i], tried=tried[i]) for i in range(len(considered)) if judge.may_pay(i)]
    for stop in _last_stops(searched, options, budget):
        for search, new, trial in zip(searched, stop.copies, stop.trials, strict=True):
            if search.proposed.loads(new):
                placed = search.proposed.placed(stop.move_price, new), search.tried.placed(stop.move_price, trial)
                rows[search.index].append(judge.choice(search.index, *placed))
    return _decision(serving, considered, rows, _within(rows, budget), options)


@dataclass(frozen=True, kw_only=True)
class _Search:
    """For one layer: the same search on all requests, and on those that do not judge."""

    index: int
    """Of the layer, among those that are planned."""
    proposed: LayerReplan
    tried: LayerReplan


@dataclass(frozen=True, kw_only=True)
class _Stop:
    """Where the searches get to at one price of a move."""

    move_price: float
    copies: list[Copies]
    """Of each layer, `[N, E]` on each node."""
    trials: list[Copies]


def _last_stops(searches: Sequence[_Search], options: DecisionOptions, budget: int) -> list[_Stop]:
    """The last price at which moves are within the budget, and the next: at one price for all, a move saves as much in every layer."""
    copies, trials = [search.proposed.serving for search in searches], [search.tried.serving for search in searches]
    stops: list[_Stop] = []
    for price in _prices(options.prices.move / options.horizon):
        copies = [search.proposed.searched(price, held) for search, held in zip(searches, copies, strict=True)]
        trials = [search.tried.searched(price, held) for search, held in zip(searches, trials, strict=True)]
        stops.append(_Stop(move_price=price, copies=copies, trials=trials))
        if sum(search.proposed.loads(found) for search, found in zip(searches, copies, strict=True)) > budget:
            break
    return stops[-2:]


def _prices(least: float) -> list[float]:
    """Of a move, in copies per token, dearest first."""
    prices = [least * dearer for dearer in DEARER]
    while 0 < prices[0] <= DEAREST / 4:
        prices.insert(0, prices[0] * 4)
    return prices


class _Judge:
    """What candidates of each layer save on requests that they were not planned on."""

    def __init__(self, serving: Placement, judged_on: RoutingTrace, options: DecisionOptions) -> None:
        self._serving, self._options = serving, options
        self._ids = [judged_on.topk_ids[:, index].astype(np.int64) for index in range(judged_on.num_layers)]
        self._requests, _ = order_of_requests(judged_on)
        self._served = [self._costs(index, layer) for index, layer in enumerate(serving.layers)]

    def may_pay(self, index: int) -> bool:
        """Whether a move could pay, were the layer to cost nothing after it."""
        most = float(cost_per_token(self._served[index], self._options.prices)[0])
        return most * self._options.horizon > min(self._options.prices.local_move, self._options.prices.move)

    def choice(self, index: int, layer: LayerPlacement, trial: LayerPlacement) -> _Choice:
        """A candidate that was planned on all requests, judged by one that was planned in the same way on the others than those here."""
        old, prices = self._serving.layers[index], self._options.prices
        costs = self._costs(index, trial)
        gain = gain_of(costs, self._served[index], prices, seed=self._options.seed)
        moved, far = (int(loads.sum()) for loads in loads_of_layer(layer, old, self._serving.topology))
        return _Choice(
            layer=layer,
            gain=gain,
            moved=moved,
            from_other_nodes=far,
            balance=balance_of(costs),
            served=balance_of(self._served[index]),
            worth=gain.low * self._options.horizon - prices.of_moves(moved, far),
        )

    def _costs(self, index: int, layer: LayerPlacement) -> RequestCosts:
        return request_costs(layer, self._serving.topology, self._serving.replica_choice, self._ids[index], self._requests)


def _within(rows: Sequence[Sequence[_Choice]], budget: int) -> list[_Choice | None]:
    """A candidate of each layer, or none, with at most so many moves in all: step by step the one that is worth most for its moves."""
    chosen: list[_Choice | None] = [None] * len(rows)
    while True:
        best, most = None, 0.0
        for index, row in enumerate(rows):
            now = chosen[index]
            worth, moved = (0.0, 0) if now is None else (now.worth, now.moved)
            for choice in row:
                rate = (choice.worth - worth) / max(choice.moved - moved, 0.5)
                if choice.worth > worth and choice.moved - moved <= budget and rate > most:
                    best, most = (index, choice), rate
        if best is None:
            return chosen
        index, choice = best
        now = chosen[index]
        budget -= choice.moved - (0 if now is None else now.moved)
        chosen[index] = choice


def _decision(
    serving: Placement,
    considered: Sequence[int],
    rows: Sequence[Sequence[_Choice]],
    chosen: Sequence[_Choice | None],
    options: DecisionOptions,
) -> Decision:
    """From the candidates of each layer that was planned, and the one that it takes."""
    taken = {index: choice for index, choice in zip(considered, chosen, strict=True) if choice is not None}
    moved, far = sum(choice.moved for choice in taken.values()), sum(choice.from_other_nodes for choice in taken.values())
    layers = len(serving.layers)
    gain = Gain(
        mean=sum(choice.gain.mean for choice in taken.values()) / layers, low=sum(choice.gain.low for choice in taken.values()) / layers
    )
    best = sum(max(0.0, *(choice.gain.mean for choice in row)) for row in rows) / layers
    placement = None
    if taken:
        new = {index: choice.layer for index, choice in taken.items()}
        layers_after = tuple(new.get(index, old) for index, old in enumerate(serving.layers))
        placement = replace(serving, layers=layers_after, source="decision")
    cost = options.prices.of_moves(moved, far) / options.horizon / layers
    saves = f"{gain.mean:.3f} copies per token (surely {gain.low:.3f})"
    return Decision(
        placement=placement,
        reason=(
            f"{len(taken)} of {layers} layers: {moved} copies to load save {saves} and cost {cost:.3f}"
            if taken
            else f"no layer saves surely more than its moves cost, over {options.horizon:,.0f} tokens"
        ),
        moved=moved,
        from_other_nodes=far,
        gain=gain,
        cost=cost,
        balance=float(np.mean([row[0].served if choice is None else choice.balance for row, choice in zip(rows, chosen, strict=True)])),
        gain_left=max(0.0, best - gain.mean),
        considered=tuple(considered),
    )
