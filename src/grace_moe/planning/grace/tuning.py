"""All layers: imbalance is priced higher until the busiest device is expected to stay within the tolerance of EPLB's, mean over layers.

Then each layer takes one of its placements, EPLB's own devices gathered on nodes among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from grace_moe.placement import LayerPlacement
from grace_moe.planning.grace.candidates import Candidate, choose_candidates, excess
from grace_moe.planning.grace.layer_placement import LayerProblem, expect_by_load, gather_by_load, plan_layer

PRICE_STEPS = (1, 4, 16)
"""Multiples of the first price."""
DOUBT = 0.5
"""Standard deviations between days that the mean day must leave to the tolerance."""
DOUBT_UNKNOWN = 2.0
"""The same where requests are unknown: how tokens depend on one another is then a guess."""


def plan_layers(
    problems: Sequence[LayerProblem], tolerance: float, threads: int, on_layer: Callable[[], None] = lambda: None
) -> list[LayerPlacement]:
    """The placement of every layer; those placed by load have a `replica_choice` of their own.

    Args:
        tolerance: load of the busiest device that is balanced enough, over EPLB's, mean over layers.
        on_layer: called as each layer has a placement.
    """
    searched = problems[0].topology.num_devices > 1 and len(problems[0].ids) > 0
    doubt = DOUBT_UNKNOWN if problems[0].tokens_dealt else DOUBT
    with ThreadPoolExecutor(threads) as pool:  # the search releases the interpreter lock
        by_load = list(pool.map(expect_by_load, problems))
        floors = np.stack([candidate.peaks for candidate in by_load])
        options: list[list[Candidate]] = [[] for _ in problems]
        copies: list[npt.NDArray[np.int64] | None] = [None] * len(problems)
        chosen = None
        behind = list(range(len(problems)))
        for step in PRICE_STEPS if searched else ():
            found = pool.map(plan_layer, [problems[i] for i in behind], [step] * len(behind), [copies[i] for i in behind])
            for index, (candidate, held) in zip(behind, found, strict=True):
                options[index].append(candidate)
                copies[index] = held
                if step == PRICE_STEPS[0]:
                    on_layer()
            chosen = choose_candidates(options, floors, tolerance, doubt)
            if problems[0].steady:
                return [row[0].layer for row in options]
            if chosen is not None:
                break
            behind = [i for i in behind if excess(options[i][-1].peaks[None], floors[i][None], doubt) > tolerance]
        if chosen is None:
            for row, candidate in zip(options, pool.map(gather_by_load, problems, by_load), strict=True):
                row.append(candidate)
                if not searched:
                    on_layer()
            chosen = choose_candidates(options, floors, tolerance, doubt) or tuple(len(row) - 1 for row in options)
    return [row[index].layer for row, index in zip(options, chosen, strict=True)]
