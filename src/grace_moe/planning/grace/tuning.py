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
from grace_moe.planning.grace.by_load import by_load_alone, floor_of
from grace_moe.planning.grace.candidates import Candidate, choose_candidates, evenest, excess
from grace_moe.planning.grace.foresight import forecast
from grace_moe.planning.grace.layer_placement import other_finishes, place_layer
from grace_moe.planning.grace.levelling import levelled
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
    if problems[0].sends == "everything":
        return _plan_balance(problems, threads, on_layer)
    searchable = problems[0].searchable
    with ThreadPoolExecutor(threads) as pool:  # the search releases the interpreter lock
        # Step 5: the floor of balance is EPLB's placement at as many slots.
        by_load = list(pool.map(floor_of, problems))
        goal = balance_goal(problems, by_load, tolerance)
        tried: list[list[Candidate]] = [[] for _ in problems]
        chosen = _search_prices(pool, problems, goal, tried, on_layer) if searchable else None
        if chosen is None:
            # Step 12, where no price is enough: EPLB's devices, gathered on nodes, are a candidate of every layer.
            for row, last in zip(tried, pool.map(by_load_alone, problems, by_load), strict=True):
                row.extend(last)
                if not searchable:
                    on_layer()
            chosen = goal.choose(tried) or tuple(len(row) - 1 for row in tried)
    return [row[index] for row, index in zip(tried, chosen, strict=True)]


def _plan_balance(problems: Sequence[LayerProblem], threads: int, on_layer: Callable[[], None]) -> list[Candidate]:
    """The most even placement of every layer, where nothing else counts: EPLB's, or ours where it is expected to be better."""
    chosen = []
    doubt = DOUBT_UNKNOWN if problems[0].requests_unknown else DOUBT
    with ThreadPoolExecutor(threads) as pool:
        for floor, layer, problem in zip(pool.map(floor_of, problems), pool.map(levelled, problems), problems, strict=True):
            chosen.append(evenest([forecast(problem, layer, "search"), floor], floor.peaks, doubt))
            on_layer()
    return chosen


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
        return by_load_alone(problem, floor_of(problem))[-1].layer
    return place_layer(problem, PRICE_STEPS[0], None)[0]


def _search_prices(
    pool: Executor, problems: Sequence[LayerProblem], goal: BalanceGoal, tried: list[list[Candidate]], on_layer: Callable[[], None]
) -> tuple[int, ...] | None:
    """Number of the candidate that each layer takes, None where the goal is out of reach; adds the candidates to `tried`.

    Only layers that don't meet the goal by themselves are searched again.
    """
    copies: list[Copies | None] = [None] * len(problems)
    behind, met = list(range(len(problems))), [False] * len(problems)
    for step in PRICE_STEPS:
        found = pool.map(_candidates, [problems[i] for i in behind], [step] * len(behind), [copies[i] for i in behind])
        for index, (candidates, held) in zip(behind, found, strict=True):
            tried[index].extend(candidates)
            met[index] = any(goal.met_by(index, candidate) for candidate in candidates)
            copies[index] = held
            if step == PRICE_STEPS[0]:
                on_layer()
        # Step 12: each layer takes one of its placements.
        chosen = goal.choose(tried)
        if chosen is not None:
            return chosen
        behind = [i for i in behind if not met[i]]
    return None


def _candidates(problem: LayerProblem, price_step: int, copies: Copies | None) -> tuple[list[Candidate], Copies]:
    """Placements at one price with what is expected of them, and the copies on their nodes."""
    layer, held = place_layer(problem, price_step, copies)
    # Step 11: how busy will the busiest device be?
    return [forecast(problem, placed, "search") for placed in (layer, *other_finishes(problem, held))], held
