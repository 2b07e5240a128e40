"""From a placement that serves: the few moves that save most, picked across layers at one price of a move.

A move saves many times as much in one layer as in another, and the first of a layer many times as much as its tenth. So each round guesses
the best moves of every layer, and finds the price at which those of all layers together are within the budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from grace_moe.choice.node_sets import MAX_EXACT_NODES
from grace_moe.placement import LayerPlacement, Placement
from grace_moe.planning.constants import (
    DECODE_BATCH,
    DECODE_COPIES,
    DECODE_LOAD,
    DESCENT_ROUNDS,
    DESCENT_TOKENS,
    HASTY_ROUNDS,
    IMBALANCE_PRICE,
    PRICE_ROUNDS_AGAIN,
)
from grace_moe.planning.grace.canonical_names import CanonicalNames, canonical_names, device_order
from grace_moe.planning.grace.fallbacks import with_choice
from grace_moe.planning.grace.layer_placement import loads_of, node_limits, place_on_devices, refit, sample, search_copies
from grace_moe.planning.grace.options import GraceOptions, check_replannable, check_task
from grace_moe.planning.grace.problem import LayerProblem, layer_problems
from grace_moe.planning.grace.schedule import REPLAN
from grace_moe.planning.grace.search.descent import Guesses, best_guesses
from grace_moe.planning.grace.search.node_state import MOVED, NodeState, node_state
from grace_moe.planning.grace.search.nodes import priced, try_moves
from grace_moe.planning.task import PlanningTask
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace

DEARER = (1.0, 4.0, 16.0)
"""Multiples of a move's price to anneal at. Not tuned."""
OVERBOOKED = 2
"""Copies to load that are tried in haste, over those that may: about half of the guesses hold by the exact energy. Not tuned."""


Copies: TypeAlias = npt.NDArray[np.int64]
"""`[N, E]` copies of each expert on each node; both by canonical names."""


@dataclass(frozen=True, kw_only=True)
class LayerReplan:
    """One layer that serves, what it may become, and the tokens to judge by."""

    problem: LayerProblem
    names: CanonicalNames
    share: npt.NDArray[np.float64]
    """`[E]` of the load."""
    covariance: npt.NDArray[np.float64]
    """`[E, E]` of the shares."""
    replica_choice: str
    """Of the placement that serves."""

    @property
    def serving(self) -> Copies:
        """`[N, E]` copies on each node as it serves."""
        assert self.problem.start is not None
        return self.problem.start

    def placed(self, copies: Copies, move_price: float) -> LayerPlacement:
        """The copies on devices, by the names of the trace. What stays on a node stays on its device, unless there is no other node."""
        if self.problem.topology.num_nodes > 1 or not self.problem.searchable:
            layer = refit(self.problem, copies)
        else:
            layer = place_on_devices(replace(self.problem, move_price=move_price), copies, self.covariance)
        return self._named(layer)

    def reweighed(self) -> LayerPlacement:
        """What serves, where it is, with the prices and weights that suit the tokens."""
        return self._named(refit(self.problem, self.serving))

    def loads(self, copies: Copies) -> int:
        """Copies that nodes would have to load."""
        return int(np.maximum(copies - self.serving, 0).sum())

    def moves(self, copies: Copies) -> bool:
        """Whether copies may have to move; inside a single node, that is found with their devices."""
        return self.problem.topology.num_nodes == 1 or bool(self.loads(copies))

    def _named(self, layer: LayerPlacement) -> LayerPlacement:
        return with_choice(self.names.original(layer), self.replica_choice)


def searched(layers: Sequence[LayerReplan], least_price: float, budget: int, *, hasty: bool = False) -> list[Copies]:
    """Copies on the nodes of each layer, that many loads away from what serves, all layers together.

    Args:
        least_price: copies per token that a move must save.
        hasty: in a third of the time, with moves that save less.
    """
    if not layers or not budget or not layers[0].problem.searchable:
        return [layer.serving for layer in layers]
    if layers[0].problem.topology.num_nodes > MAX_EXACT_NODES:
        return _annealed(layers, least_price, budget)
    states = [_state(layer) for layer in layers]
    refused = [np.empty((0, 5), np.int64) for _ in layers]
    guesses: list[Guesses | None] = [None] * len(layers)
    for _ in range(HASTY_ROUNDS if hasty else DESCENT_ROUNDS):
        found = [guess or best_guesses(state, least_price, moves) for guess, state, moves in zip(guesses, states, refused, strict=True)]
        left = budget - _loads(states)
        price = max(least_price, _price_of(found, OVERBOOKED * left if hasty else left))
        if math.isinf(price):
            break
        guesses = list(found)
        for index, guess in enumerate(found):
            tried = (guess.saved >= price) & (guess.loads.cumsum() <= budget - _loads(states))
            if tried.any():
                states[index] = priced(states[index], price)
                refused[index] = np.concatenate([refused[index], try_moves(states[index], guess.moves[tried])])
                guesses[index] = None  # what was tried changes what is best
    return [state.contents.copies for state in states]


def _loads(states: Sequence[NodeState]) -> int:
    return sum(int(state.sums[MOVED]) for state in states)


def tokens_of_search(topology: Topology) -> int:
    """Most tokens that a search looks at."""
    return DESCENT_TOKENS // topology.num_nodes


def _state(layer: LayerReplan) -> NodeState:
    problem = layer.problem
    options = replace(REPLAN, imbalance_price=problem.imbalance_price, held=layer.serving)
    ids = problem.ids[sample(problem, tokens_of_search(problem.topology))]
    return node_state(ids, layer.share, layer.covariance, node_limits(problem), options, layer.serving)


def _price_of(guesses: Sequence[Guesses], budget: int) -> float:
    """Of a move, at which the guesses of all layers together load no more than the budget; infinite where none may."""
    saved = np.concatenate([guess.saved for guess in guesses])
    loads = np.concatenate([guess.loads for guess in guesses])
    order = np.argsort(-saved, kind="stable")
    within = saved[order][loads[order].cumsum() <= budget]
    return float(within[-1]) if len(within) and budget > 0 else math.inf


def _annealed(layers: Sequence[LayerReplan], least_price: float, budget: int) -> list[Copies]:
    """Where nodes are too many to guess moves for, by annealing; at a dearer price where the moves are over the budget."""
    found = [layer.serving for layer in layers]
    for dearer in DEARER:
        problems = [replace(layer.problem, move_price=least_price * dearer) for layer in layers]
        found = [
            search_copies(problem, 1, layer.serving, layer.share, layer.covariance) for layer, problem in zip(layers, problems, strict=True)
        ]
        if sum(layer.loads(copies) for layer, copies in zip(layers, found, strict=True)) <= budget:
            break
    return found


def layers_to_replan(trace: RoutingTrace, serving: Placement, *, seed: int, effort: float) -> list[LayerReplan]:
    """Every layer of a placement that serves. Balance is priced and not bounded: a bound would move experts whatever it costs.

    Raises:
        UsageError: an option out of range, or more nodes than the search takes.
        MismatchError: the trace is of another model.
    """
    check_replannable(serving.topology)
    task = PlanningTask(
        recording=trace, topology=serving.topology, seed=seed, slots_per_device=int(serving.slots_per_device().max()), start=serving
    )
    options = GraceOptions(
        price=IMBALANCE_PRICE,
        move_price=0.0,
        tolerance=math.inf,
        request_placement=False,
        decode="tokens",
        decode_copies=DECODE_COPIES,
        decode_load=DECODE_LOAD,
        decode_batch=DECODE_BATCH,
        effort=effort,
        threads=1,
    )
    check_task(task, options)
    names = canonical_names(trace.topk_ids, trace.num_experts, device_order(serving.topology))
    found = []
    for own, problem in zip(names, layer_problems(task, options, names), strict=True):
        assert problem.serving is not None
        problem = replace(problem, price_rounds=PRICE_ROUNDS_AGAIN, first_prices=problem.serving.node_prices)
        share, covariance = loads_of(problem)
        found.append(LayerReplan(problem=problem, names=own, share=share, covariance=covariance, replica_choice=serving.replica_choice))
    return found
