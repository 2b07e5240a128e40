"""What tokens cost from each node: of each request (step 4), and of each expert, for a front-end (step 13)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from grace_moe.placement import LayerPlacement
from grace_moe.planning.constants import COST_TOKENS
from grace_moe.planning.grace.predicted_choice import predict_choice
from grace_moe.planning.grace.problem import LayerProblem


def with_source_costs(problem: LayerProblem, layer: LayerPlacement) -> LayerPlacement:
    """The layer with `source_costs`, by which a front-end places requests (`choice.place_requests`)."""
    ids = problem.ids[thinned(problem)]
    copies = predict_choice(layer, problem.topology, ids, problem.seed, problem.sends).copies
    return replace(layer, source_costs=costs_of_experts(copies, ids, problem.experts))


def request_costs(problems: Sequence[LayerProblem], layers: Sequence[LayerPlacement]) -> npt.NDArray[np.float64]:
    """`[layers, requests, N]` copies of each request from each node."""
    num_requests = int(problems[0].unit.max(initial=-1)) + 1
    total = np.zeros((len(layers), num_requests, problems[0].topology.num_nodes))
    for index, (problem, layer) in enumerate(zip(problems, layers, strict=True)):
        tokens = thinned(problem)
        copies = predict_choice(layer, problem.topology, problem.ids[tokens], problem.seed, problem.sends).copies
        np.add.at(total[index], problem.unit[tokens], copies)
    return total


def thinned(problem: LayerProblem) -> slice:
    """Every token, or as few of them at equal distance as `COST_TOKENS` allow."""
    return slice(None, None, -(-len(problem.ids) // COST_TOKENS) or 1)


def costs_of_experts(costs: npt.NDArray[np.float64], ids: npt.NDArray[np.int64], experts: int) -> tuple[tuple[float, ...], ...]:
    """`[E, N]` mean over the tokens that chose an expert of their cost from each node, over its mean over nodes; rounded.

    Args:
        costs: `[T, N]` copies of each token from each node.
        ids: `[T, k]`, -1 = none.
    """
    over = costs - costs.mean(axis=1, keepdims=True)
    token, k = np.nonzero(ids >= 0)
    total = np.zeros((experts, costs.shape[1]))
    np.add.at(total, ids[token, k], over[token])
    count = np.bincount(ids[token, k], minlength=experts)
    return rounded(total / np.maximum(count, 1)[:, None])


def rounded(table: npt.NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    """`[E, N]` as a placement holds it."""
    return tuple(tuple(float(cost) for cost in row) for row in np.round(table, 4) + 0.0)  # no -0.0
