"""Steps 5 to 12 for all layers: imbalance is priced higher until the expected balance is within the tolerance.

The tolerance is on the busiest device over EPLB's, mean over layers. So no layer can be settled alone: after every price, all
layers choose together among the placements that they have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grace_moe.placement import LayerPlacement
from grace_moe.planning.constants import DOUBT, DOUBT_UNKNOWN, PRICE_STEPS
from grace_moe.planning.grace.by_load import floor_of, gathered
from grace_moe.planning.grace.candidates import Candidate, choose_candidates, excess
from grace_moe.planning.grace.foresight import forecast
from grace_moe.planning.grace.layer_placement import place_layer
from grace_moe.planning.grace.problem import LayerProblem

Copies = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class BalanceGoal:
    """How busy the busiest device may be."""

    floors: npt.NDArray[np.float64]
    """`[layers, DAYS]` busiest device of EPLB's placement over the mean."""
    tolerance: float
    """Most that ours may have over the floors, mean over layers."""
    doubt: float
    """Standard deviations between days that must be within it too."""

    def choose(self, candidates: Sequence[Sequence[Candidate]]) -> tuple[int, ...] | None:
        """Number of the candidate that each layer takes; None where the goal is out of reach."""
        return choose_candidates(candidates, self.floors, self.tolerance, self.doubt)

    def met_by(self, index: int, candidate: Candidate) -> bool:
        """Whether a layer meets the goal by itself."""
        return excess(candidate.peaks[None], self.floors[index][None], self.doubt) <= self.tolerance


def balance_goal(problems: Sequence[LayerProblem], floors: Sequence[Candidate], tolerance: float) -> BalanceGoal:
    """The tolerance over these placements; more doubt where requests are unknown: how tokens depend on one another is then a guess."""
    peaks = np.stack([candidate.peaks for candidate in floors])
    return BalanceGoal(floors=peaks, tolerance=tolerance, doubt=DOUBT_UNKNOWN if problems[0].requests_unknown else DOUBT)


def plan_layers(
    problems: Sequence[LayerProblem], tolerance: float, threads: int, on_layer: Callable[[], None] = lambda: None
) -> list[Candidate]:
    """The placement of every layer.

    Args:
        tolerance: load of the busiest device that is balanced enough, over EPLB's, mean over layers.
        threads: layers at once; the plan does not depend on it.
        on_layer: called as each layer has a placement.
    """
    searchable = problems[0].searchable
    with ThreadPoolExecutor(threads) as pool:  # the search releases the interpreter lock
        # Step 5: the floor of balance is EPLB's placement at as many slots.
        by_load = list(pool.map(floor_of, problems))
        goal = balance_goal(problems, by_load, tolerance)
        tried: list[list[Candidate]] = [[] for _ in problems]
        chosen = _search_prices(pool, problems, goal, tried, on_layer) if searchable else None
        if chosen is None:
            # Step 12, where no price is enough: EPLB's devices, gathered on nodes, are a candidate of every layer.
            for row, candidate in zip(tried, pool.map(gathered, problems, by_load), strict=True):
                row.append(candidate)
                if not searchable:
                    on_layer()
            chosen = goal.choose(tried) or tuple(len(row) - 1 for row in tried)
    return [row[index] for row, index in zip(tried, chosen, strict=True)]


def plan_layers_once(problems: Sequence[LayerProblem], threads: int, on_layer: Callable[[], None]) -> list[LayerPlacement]:
    """The placement of every layer at the first price, whatever its balance."""
    layers = []
    with ThreadPoolExecutor(threads) as pool:
        for layer in pool.map(_first_placement, problems):
            layers.append(layer)
            on_layer()
    return layers


def _first_placement(problem: LayerProblem) -> LayerPlacement:
    if not problem.searchable:
        return gathered(problem, floor_of(problem)).layer
    return place_layer(problem, PRICE_STEPS[0], None)[0]


def _search_prices(
    pool: Executor, problems: Sequence[LayerProblem], goal: BalanceGoal, tried: list[list[Candidate]], on_layer: Callable[[], None]
) -> tuple[int, ...] | None:
    """Number of the candidate that each layer takes, None where the goal is out of reach; adds the candidates to `tried`.

    Only layers that don't meet the goal by themselves are searched again.
    """
    copies: list[Copies | None] = [None] * len(problems)
    behind = list(range(len(problems)))
    for step in PRICE_STEPS:
        found = pool.map(_candidate, [problems[i] for i in behind], [step] * len(behind), [copies[i] for i in behind])
        for index, (candidate, held) in zip(behind, found, strict=True):
            tried[index].append(candidate)
            copies[index] = held
            if step == PRICE_STEPS[0]:
                on_layer()
        # Step 12: each layer takes one of its placements.
        chosen = goal.choose(tried)
        if chosen is not None:
            return chosen
        behind = [i for i in behind if not goal.met_by(i, tried[i][-1])]
    return None


def _candidate(problem: LayerProblem, price_step: int, copies: Copies | None) -> tuple[Candidate, Copies]:
    """A placement at one price with what is expected of it, and the copies on its nodes."""
    layer, held = place_layer(problem, price_step, copies)
    # Step 11: how busy will its busiest device be?
    return forecast(problem, layer, "search"), held
