"""Whether to move experts, and which: what is surely saved over a horizon against what moving costs, layer by layer, within a budget.

Half of the recent requests are planned on, from the placement that serves: for the moves that save most, picked across layers at one price
of a move, within the budget. The other half judges. Where there is time, each half judges what is planned on the other, and layers whose
moves surely pay are then planned on all requests in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from grace_moe.adapt.candidates import Candidate, Judge, candidates_of, moves_of
from grace_moe.adapt.judge import Gain
from grace_moe.adapt.prices import Prices
from grace_moe.errors import UsageError
from grace_moe.placement import LayerPlacement, Placement
from grace_moe.trace import RoutingTrace

AGAIN_ON_ALL, BOTH_HALVES = 2, 3
"""Times that all layers can be planned within `DecisionOptions.work`, at which they are planned again on all requests, and from which
candidates of either half are judged by the other."""

LEAST = 0.005
"""Share of what traffic costs, over the layers that are planned, that a decision surely saves: for less, nothing changes. Not tuned: it is
the harm that following is to stay below."""

MOVES_LOW = 0.25
"""Chance that a layer which moves saves less than what is called sure. The account bounds what an error costs; nothing bounds what new
weights cost, which are free. Chosen on OLMoE, other halves of the requests than the page measures (seeds 101 to 105)."""


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
    work: int = 600_000
    """Most tokens times nodes, over all layers, that are planned on; at least one layer is. It bounds a decision's time. Not tuned: all of
    58 layers on eight nodes at the first look after a change."""
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
    first: tuple[int, ...] = ()
    """Indices of the layers that change, those that are worth most for each move first."""


def decide(serving: Placement, recent: RoutingTrace, options: DecisionOptions, *, order: Sequence[int] | None = None) -> Decision:
    """Decide by a sample of recent tokens. The same arguments give the same decision.

    Args:
        order: indices of the layers that may change; the first ones are planned, as many as `options.work` allows. None = all in order.

    Raises:
        TraceError: the sample has fewer than two requests.
    """
    halves = recent.split_requests(options.seed)
    work = max(1, halves[0].num_tokens * serving.topology.num_nodes)  # of a layer
    most = max(1, options.work // work)
    considered = tuple(sorted(tuple(range(len(serving.layers)) if order is None else order)[:most]))
    part = serving
    if len(considered) < len(serving.layers):
        part = replace(serving, layers=tuple(serving.layers[index] for index in considered))
    budget = int(options.budget * sum(len(row) for layer in serving.layers for row in layer.devices_of_expert))
    first, second = (half.of_layers(considered) for half in halves)
    passes = options.work // (work * len(considered))
    folds = [(first, second), (second, first)] if passes >= BOTH_HALVES else [(first, second)]
    hasty = len(folds) < 2
    planners = [_Planner(part, planned_on, options, budget, hasty=hasty) for planned_on, _ in folds]
    judges = [Judge(part, judged_on, options.prices) for _, judged_on in folds]
    indices = range(len(considered))
    paying = [[index for index in indices if judge.may_pay(index, options.horizon)] for judge in judges]
    new = [planner.moving(these) for planner, these in zip(planners, paying, strict=True)]
    moving = candidates_of(judges, new, options.seed, chance_of_less=MOVES_LOW)
    taken = _paying(moving, options)
    others = [index for index in indices if index not in taken]
    staying = candidates_of(judges, [{index: planner.staying(index) for index in others} for planner in planners], options.seed)
    taken |= _paying(staying, options)
    best = sum(max(0.0, *(some[index].gain.mean for some in (moving, staying) if index in some)) for index in indices)
    if passes >= AGAIN_ON_ALL:
        taken = _planned_on_all(taken, _Planner(part, recent.of_layers(considered), options, budget, hasty=hasty), part)
    taken = _worthwhile(_within(taken, budget, options), sum(judges[0].served_cost(index) for index in indices))
    balance = np.mean([taken[index].balance if index in taken else judges[0].served_balance(index) for index in indices])
    named = {considered[index]: one for index, one in taken.items()}
    return decision_of(serving, considered, named, options, best=best, balance=float(balance))


def _paying(candidates: Mapping[int, Candidate], options: DecisionOptions) -> dict[int, Candidate]:
    return {index: one for index, one in candidates.items() if one.worth(options.prices, options.horizon) > 0}


class _Planner:
    """What layers may become, by the same tokens for all."""

    def __init__(self, serving: Placement, tokens: RoutingTrace, options: DecisionOptions, budget: int, *, hasty: bool) -> None:
        from grace_moe.planning.grace import replanning  # compiles: commands that only describe themselves do without

        self._layers = replanning.layers_to_replan(tokens, serving, seed=options.seed, effort=options.effort)
        self._searched, self._hasty = replanning.searched, hasty
        self._price, self._budget = options.prices.move / options.horizon, budget

    def moving(self, indices: Sequence[int]) -> dict[int, LayerPlacement]:
        """Those of the layers for which moves seem to pay, all together within the budget."""
        layers = [self._layers[index] for index in indices]
        found = zip(indices, layers, self._searched(layers, self._price, self._budget, hasty=self._hasty), strict=True)
        return {index: layer.placed(copies, self._price) for index, layer, copies in found if layer.moves(copies)}

    def staying(self, index: int) -> LayerPlacement:
        """The layer where it is, with other weights."""
        return self._layers[index].reweighed()


def _planned_on_all(taken: Mapping[int, Candidate], planner: _Planner, serving: Placement) -> dict[int, Candidate]:
    """The layers that are taken, planned in the same way on all requests: what they save was judged already."""
    new = {index: planner.staying(index) for index, one in taken.items() if not one.moved}
    new |= planner.moving([index for index, one in taken.items() if one.moved])
    found = {}
    for index, layer in new.items():
        moved, far = moves_of(layer, serving, index)
        found[index] = replace(taken[index], layer=layer, moved=moved, from_other_nodes=far)
    return found


def _within(taken: Mapping[int, Candidate], budget: int, options: DecisionOptions) -> dict[int, Candidate]:
    """The layers that are worth most for each move, with at most so many moves in all."""
    kept = {}
    for index in _by_worth(taken, options):
        if taken[index].moved <= budget:
            kept[index] = taken[index]
            budget -= taken[index].moved
    return kept


def _worthwhile(taken: Mapping[int, Candidate], cost: float) -> Mapping[int, Candidate]:
    """All of the layers, or none where they surely save too little of what traffic costs."""
    return taken if sum(one.gain.low for one in taken.values()) >= LEAST * cost else {}


def _by_worth(taken: Mapping[int, Candidate], options: DecisionOptions) -> list[int]:
    """Layers, those that are worth most for each move first."""
    return sorted(taken, key=lambda index: -taken[index].worth(options.prices, options.horizon) / max(taken[index].moved, 0.5))


def decision_of(
    serving: Placement,
    considered: Sequence[int],
    taken: Mapping[int, Candidate],
    options: DecisionOptions,
    *,
    best: float,
    balance: float,
) -> Decision:
    """The decision to take these layers, by their indices in the placement.

    Args:
        best: copies per token that the best candidates of all layers would save.
        balance: of the layers that were planned.
    """
    layers, prices = len(serving.layers), options.prices
    moved, far = sum(one.moved for one in taken.values()), sum(one.from_other_nodes for one in taken.values())
    gain = Gain(mean=sum(one.gain.mean for one in taken.values()) / layers, low=sum(one.gain.low for one in taken.values()) / layers)
    cost = prices.of_moves(moved, far) / options.horizon / layers
    saves = f"{gain.mean:.3f} copies per token (surely {gain.low:.3f})"
    return Decision(
        placement=_with_layers(serving, taken) if taken else None,
        reason=(
            f"{len(taken)} of {layers} layers: {moved} copies to load save {saves} and cost {cost:.3f}"
            if taken
            else f"no layers surely save more than their moves cost over {options.horizon:,.0f} tokens, and {LEAST:.1%} of all costs"
        ),
        moved=moved,
        from_other_nodes=far,
        gain=gain,
        cost=cost,
        balance=balance,
        gain_left=max(0.0, best / layers - gain.mean),
        considered=tuple(considered),
        first=tuple(_by_worth(taken, options)),
    )


def _with_layers(serving: Placement, taken: Mapping[int, Candidate]) -> Placement:
    layers = tuple(taken[index].layer if index in taken else old for index, old in enumerate(serving.layers))
    return replace(serving, layers=layers, source="decision")
