"""Which replicas decode uses. Where decode is bound by memory, a layer takes as long as the device with the most distinct active experts.

A replica serves prefill well: it spreads a hot expert's tokens, or saves a copy. In decode it makes one more device read the
expert's weights (METRO, arXiv 2512.09277: some optimum sends all tokens of an expert to one replica). So replicas are given up
in decode, one by one. Next comes the replica with the best ratio of gain to cost. The gain is the drop of the expected maximum
of active experts; the cost is the rise of copies between nodes and of the busiest device's load. Both have bounds, and the gain
must be worth the cost. Unlike METRO's, the choice is made once, from the trace, and needs no exchange at run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from grace_moe.placement import LayerPlacement
from grace_moe.planning.constants import LEAST_RETURN
from grace_moe.planning.grace.decode.batches import sample_batches
from grace_moe.planning.grace.decode.course import Point, course
from grace_moe.planning.grace.decode.problem import DecodeBounds, DecodeProblem
from grace_moe.planning.grace.decode.usage import ReplicaUse, renormalised
from grace_moe.planning.task import PlannedLayers, PlanningTask
from grace_moe.trace import DECODE

Ints = npt.NDArray[np.int64]

NO_DECODE = "no decode tokens in the trace: decode's replicas were chosen by all of its tokens"
NOTHING_SPARED = "decode experts has no effect: no replica can be given up within the bounds"


def with_decode_weights(planned: PlannedLayers, task: PlanningTask, sources: Ints, bounds: DecodeBounds) -> PlannedLayers:
    """The same plan, its layers with `decode_weights` where fewer replicas serve decode better; deterministic.

    Goes by the trace's decode tokens, or by all where it has none.

    Args:
        sources: `[T]` source device of each token of the trace.
    """
    trace = task.trace
    tokens = np.arange(trace.num_tokens)
    notes = planned.notes
    if trace.phase is not None and (trace.phase == DECODE).any():
        tokens = np.flatnonzero(trace.phase == DECODE)
    else:
        notes = (*notes, NO_DECODE)
    if not len(tokens):
        return replace(planned, notes=notes)
    _, request_of_token = np.unique(trace.requests[tokens], return_inverse=True)
    tokens = tokens[sample_batches(request_of_token, bounds.batch, task.seed)]
    problems = [
        DecodeProblem(
            layer=layer,
            topology=task.topology,
            policy=planned.replica_choice,
            ids=trace.topk_ids[tokens, index].astype(np.int64),
            sources=sources[tokens],
            bounds=bounds,
            sends=task.sends,
            seed=task.seed,
        )
        for index, layer in enumerate(planned.layers)
    ]
    layers = layers_with_decode_weights(problems)
    if not any(layer.decode_weights for layer in layers):
        notes = (*notes, NOTHING_SPARED)
    return replace(planned, layers=layers, notes=notes)


def layers_with_decode_weights(problems: Sequence[DecodeProblem]) -> tuple[LayerPlacement, ...]:
    """The layers with `decode_weights`; deterministic. Without, where every replica is worth keeping.

    The bound on copies is one for all layers: it goes to those where it takes most active experts off. The bound on load is each layer's.
    """
    before = [ReplicaUse(problem).copies for problem in problems]
    allowed = sum(before) * problems[0].bounds.copies
    courses = [course(problem, allowed) for problem in problems]
    chosen = [0] * len(problems)
    while True:
        # The step of any layer, over as many replicas as it takes, that gains most for its copies.
        steps = [
            (_return(points[at], points[to], copies), -layer, to)
            for layer, (points, at, copies) in enumerate(zip(courses, chosen, before, strict=True))
            for to in range(at + 1, len(points))
            if points[to].copies - points[at].copies <= allowed
        ]
        gain, layer, to = max(steps, default=(0.0, 0, 0))
        if gain <= LEAST_RETURN:
            break
        allowed -= courses[-layer][to].copies - courses[-layer][chosen[-layer]].copies
        chosen[-layer] = to
    return tuple(
        _with_weights(problem.layer, {point.given_up for point in points[1 : to + 1]})
        for problem, points, to in zip(problems, courses, chosen, strict=True)
    )


def _return(at: Point, to: Point, copies: int) -> float:
    """Share of active experts less for each share of copies more; those that cost none count as the least that can be told."""
    return (1 - to.active / at.active) / max((to.copies - at.copies) / max(copies, 1), 1e-6)


def _with_weights(layer: LayerPlacement, given_up: set[tuple[int, int]]) -> LayerPlacement:
    """The layer, decode using all but these (expert, device) replicas, by their weights among each other."""
    if not given_up:
        return layer
    rows = []
    for expert, (devices, weights) in enumerate(zip(layer.devices_of_expert, layer.replica_weights, strict=True)):
        kept = [(expert, device) not in given_up for device in devices]
        shares = iter(renormalised([w for w, keep in zip(weights, kept, strict=True) if keep]))
        rows.append(tuple(next(shares) if keep else 0.0 for keep in kept))
    return replace(layer, decode_weights=tuple(rows))
