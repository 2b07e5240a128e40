"""Step 13 where a front-end places requests: costs of sources that foretell a whole request from its first tokens.

The mean cost of the tokens that chose an expert tells what such a token costs. How the rest of its request goes on, it tells less well. So
the table of experts and nodes is fitted to that: by ridge regression of what each request of the trace costs from a node, on the experts
that a window of its tokens chose. The regression corrects the means, rather than to begin from nothing, as there are more experts than
requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from grace_moe.choice.front_end import FIRST_TOKENS
from grace_moe.placement import LayerPlacement
from grace_moe.planning.constants import COST_RIDGE, COST_WINDOWS, EVENING_ROUNDS
from grace_moe.planning.grace.problem import LayerProblem
from grace_moe.planning.grace.source_costs import request_costs, rounded, thinned, with_source_costs

Floats = npt.NDArray[np.float64]


def with_learnt_costs(problems: Sequence[LayerProblem], layers: Sequence[LayerPlacement]) -> list[LayerPlacement]:
    """The layers with `source_costs` by which a front-end places requests (`choice.place_requests`)."""
    means = [with_source_costs(problem, layer) for problem, layer in zip(problems, layers, strict=True)]
    prior = np.concatenate([np.array(layer.source_costs) for layer in means])
    windows, request = _windows(problems)
    tokens = np.bincount(problems[0].unit[thinned(problems[0])], minlength=int(request.max(initial=-1)) + 1)
    known = tokens[request] > 0
    if not known.any():
        return means
    costs = request_costs(problems, layers).sum(axis=0) / (np.maximum(tokens, 1) * len(layers))[:, None]
    costs -= costs.mean(axis=1, keepdims=True)
    learnt = _corrected(prior, windows[known], costs[request[known]]).reshape(len(layers), -1, costs.shape[1])
    return [replace(layer, source_costs=rounded(table)) for layer, table in zip(means, learnt, strict=True)]


def _windows(problems: Sequence[LayerProblem]) -> tuple[Floats, npt.NDArray[np.int64]]:
    """`[W, layers * E]` share of each expert among a window's choices in its layer, over the layers; and `[W]` the windows' requests.

    A window is `FIRST_TOKENS` tokens of one request, its last one perhaps fewer. Of many, some at equal distance.
    """
    unit, experts = problems[0].unit, problems[0].experts
    order = np.argsort(unit, kind="stable")
    starts = np.flatnonzero(np.diff(unit[order], prepend=-1))
    position = np.arange(len(unit)) - np.repeat(starts, np.diff(np.append(starts, len(unit))))
    first = np.flatnonzero(position % FIRST_TOKENS == 0)
    window = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(unit))))
    thinning = -(-len(first) // COST_WINDOWS) or 1
    shares = np.zeros((-(-len(first) // thinning), len(problems), experts))
    kept = window % thinning == 0
    row = window[kept] // thinning
    for index, problem in enumerate(problems):
        ids = problem.ids[order[kept]]
        chosen = ids >= 0
        np.add.at(shares[:, index], (np.broadcast_to(row[:, None], ids.shape)[chosen], ids[chosen]), 1 / ids.shape[1])
    shares /= np.maximum(np.bincount(row, minlength=len(shares)), 1)[:, None, None] * len(problems)
    return shares.reshape(len(shares), -1), unit[order[first[::thinning]]]


def _corrected(prior: Floats, windows: Floats, costs: Floats) -> Floats:
    """`[layers * E, N]` the prior, scaled and corrected so that windows tell the costs of their requests.

    Args:
        prior: `[layers * E, N]`; windows: `[W, layers * E]`; costs: `[W, N]`.
    """
    told = windows @ prior
    scale = float((told * costs).sum() / max((told * told).sum(), 1e-12))
    rest, centre = costs - scale * told, windows.mean(axis=0)
    over = windows - centre
    kernel = over @ over.T
    ridge = COST_RIDGE * max(float(np.trace(kernel)) / len(kernel), 1e-12)
    correction = over.T @ np.linalg.solve(kernel + ridge * np.eye(len(kernel)), rest - rest.mean(axis=0))
    table: Floats = scale * prior + correction
    # What all windows have in common, every expert of every layer carries: the shares of a window's experts sum to 1.
    return table + evening(windows @ table)


def evening(costs: Floats) -> Floats:
    """`[N]` to add to the costs `[W, N]` of windows so that about as many are cheapest from each node.

    Which topics are common is not known to last, but a front-end that begins with this has less to even out.
    """
    windows, nodes = costs.shape
    added = np.zeros(nodes)
    spread = float((costs.max(axis=1) - costs.min(axis=1)).mean())
    for step in range(EVENING_ROUNDS):
        share = np.bincount((costs + added).argmin(axis=1), minlength=nodes) / windows
        added += spread * (share - 1 / nodes) / (1 + step / 10)
    return added
