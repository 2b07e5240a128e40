"""Whether to move experts, and which: what is surely saved over a horizon against what moving costs, layer by layer, within a budget.

Half of the recent requests are planned on, from the placement that serves and at a price for each move; the other half judges. A layer
takes the candidate that is worth most, or stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from grace_moe.adapt.judge import Gain, balance_of, gains_of
from grace_moe.adapt.prices import Prices
from grace_moe.adapt.request_costs import request_costs
from grace_moe.errors import UsageError
from grace_moe.placement import LayerPlacement, Placement, difference
from grace_moe.planning import plan
from grace_moe.planning.grace.fallbacks import with_choice
from grace_moe.trace import RoutingTrace, order_of_requests

DEARER = (1.0, 4.0, 16.0)
"""Multiples of a move's price to plan at, the next where the moves are over the budget. Not tuned."""
NO_MOVE = 1e5
"""Price at which only shares of replicas change."""
NO_SEARCH = 1e-3
"""Share of a search's effort at that price, where it finds nothing."""


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
    work: int = 200_000
    """Most tokens times nodes, over all layers, that are planned on; at least one layer is. It bounds a decision's time. Not tuned:
    with a full sample, all layers of OLMoE and gpt-oss on two nodes."""
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
    planned_on, judged_on = planned_on.of_layers(considered), judged_on.of_layers(considered)
    budget = int(options.budget * sum(len(row) for layer in serving.layers for row in layer.devices_of_expert))
    rows: list[list[_Choice]] = [[] for _ in considered]
    base = options.prices.move / options.horizon
    for price in (NO_MOVE, *(base * dearer for dearer in DEARER)):
        _add_choices(rows, _planned(part, planned_on, price, options), part, judged_on, options)
        chosen = [max(row, key=lambda choice: choice.worth) for row in rows]
        if price != NO_MOVE and sum(choice.moved for choice in chosen if choice.worth > 0) <= budget:
            break
    return _decision(serving, considered, rows, _within(rows, budget), options)


def _planned(serving: Placement, recent: RoutingTrace, move_price: float, options: DecisionOptions) -> Placement:
    """From what serves, balance priced and not bounded: a bound would move experts whatever it costs."""
    return plan(
        recent,
        serving.topology,
        start=serving,
        slots_per_device=int(serving.slots_per_device().max()),
        seed=options.seed,
        move_price=move_price,
        tolerance=math.inf,
        effort=options.effort * (NO_SEARCH if move_price == NO_MOVE else 1),
        threads=1,
    )


def _add_choices(
    rows: Sequence[list[_Choice]], planned: Placement, serving: Placement, judged_on: RoutingTrace, options: DecisionOptions
) -> None:
    moves = difference(planned, serving)
    requests, _ = order_of_requests(judged_on)
    candidates, served = (
        [
            request_costs(layer, serving.topology, placement.replica_choice, judged_on.topk_ids[:, index].astype(np.int64), requests)
            for index, layer in enumerate(placement.layers)
        ]
        for placement in (planned, serving)
    )
    gains = gains_of(candidates, served, options.prices, seed=options.seed)
    for index, (layer, gain) in enumerate(zip(planned.layers, gains, strict=True)):
        moved, far = int(moves.loads[index].sum()), int(moves.from_other_nodes[index].sum())
        rows[index].append(
            _Choice(
                layer=layer,
                gain=gain,
                moved=moved,
                from_other_nodes=far,
                balance=balance_of(candidates[index]),
                served=balance_of(served[index]),
                worth=gain.low * options.horizon - options.prices.of_moves(moved, far),
            )
        )


def _within(rows: Sequence[Sequence[_Choice]], budget: int) -> list[_Choice | None]:
    """A candidate of each layer, or none, with at most so many moves in all: at the least price of a move that keeps the budget."""
    most = max((choice.worth for row in rows for choice in row), default=0.0)
    for price in (0.0, *np.geomspace(1e-3, 1.0, 40) * max(most, 1e-9)):
        chosen = [max(row, key=lambda choice: choice.worth - price * choice.moved) for row in rows]
        kept = [choice if choice.worth - price * choice.moved > 0 else None for choice in chosen]
        if sum(choice.moved for choice in kept if choice is not None) <= budget:
            return kept
    return [None] * len(rows)


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
        new = {index: with_choice(choice.layer, serving.replica_choice) for index, choice in taken.items()}
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
