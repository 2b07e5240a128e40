"""EPLB's placement of a layer: the floor that balance is compared with (step 5), and the last candidate (step 12)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from grace_moe.planning.baselines.eplb import layer_by_load
from grace_moe.planning.constants import SEARCH_TOKENS
from grace_moe.planning.grace.candidates import Candidate
from grace_moe.planning.grace.foresight import forecast
from grace_moe.planning.grace.problem import LayerProblem
from grace_moe.planning.grace.search.gathering import gather_devices


def floor_of(problem: LayerProblem) -> Candidate:
    """EPLB's own placement at as many slots."""
    return forecast(problem, layer_by_load(problem.layer_id, problem.ids, problem.experts, problem.topology, problem.slots), "eplb")


def by_load_alone(problem: LayerProblem, floor: Candidate) -> list[Candidate]:
    """The candidates that balance at least as well as the floor; the last has the fewest copies, but for its nodes.

    Where nothing is saved by sending several of a token's experts the same way, near replicas save something.
    """
    last = gathered(problem, floor)
    if problem.sends == "nodes":
        return [last]
    return [forecast(problem, replace(floor.layer, replica_choice="tar"), "eplb"), last]


def gathered(problem: LayerProblem, floor: Candidate) -> Candidate:
    """The floor's devices, whole, on other nodes: the same balance, fewer copies."""
    tokens = np.random.default_rng(problem.seed).permutation(len(problem.ids))[:SEARCH_TOKENS]
    layer = gather_devices(floor.layer, problem.ids[tokens], problem.topology, problem.effort, problem.seed)
    return replace(forecast(problem, layer, "eplb"), peaks=floor.peaks)
