"""In which order one layer gives replicas up, and where that leads."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grace_moe.planning.constants import LEAST_COST, SHARPNESS
from grace_moe.planning.grace.decode.problem import DecodeProblem
from grace_moe.planning.grace.decode.usage import Loss, ReplicaUse

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Point:
    """What a layer's batches cost once one more replica is given up."""

    given_up: tuple[int, int]
    """Expert and device; of the first point, none."""
    active: float
    """Most active experts on a device, mean over batches."""
    copies: int


def course(problem: DecodeProblem, most_more_copies: float) -> list[Point]:
    """The replicas of one layer that are given up, in this order, and where that leads."""
    state = ReplicaUse(problem)
    most_copies, most_load = state.copies + most_more_copies, state.load.max() * (1 + problem.bounds.load)
    of_copies = max(state.copies * problem.bounds.copies, 1e-9)
    of_load = max(most_load - state.load.max(), 1e-9)

    def worth(change: Loss) -> float:
        """Active experts less, over what they cost as shares of the bounds; 0 = not to be done."""
        gain = _soft_maximum(state.active) - _soft_maximum(change.active)
        if gain <= 0 or change.copies > most_copies or change.load.max() > most_load:
            return 0.0
        cost = max(change.copies - state.copies, 0) / of_copies + max(change.load.max() - state.load.max(), 0.0) / of_load
        return float(gain / max(cost, LEAST_COST))

    points = [Point(given_up=(-1, -1), active=_maximum(state.active), copies=state.copies)]
    replicas = [(expert, device) for expert, row in enumerate(state.used) if len(row) > 1 for device in row]
    queue = [(-worth(state.without(*replica)), *replica) for replica in replicas]
    heapq.heapify(queue)
    while queue:
        _, expert, device = heapq.heappop(queue)
        if len(state.used[expert]) == 1:
            continue
        change = state.without(expert, device)
        now = worth(change)
        if now <= 0:
            continue
        if queue and now < -queue[0][0]:
            heapq.heappush(queue, (-now, expert, device))
            continue
        state.make(change)
        points.append(Point(given_up=(expert, device), active=_maximum(state.active), copies=state.copies))
    return points


def _maximum(active: Ints) -> float:
    """Mean over batches of the most active experts on a device."""
    return max(float(active.max(axis=1).mean()), 1e-9)


def _soft_maximum(active: Ints) -> float:
    """Mean over batches of a smooth maximum over devices."""
    scaled = SHARPNESS * active
    most = scaled.max(axis=1, keepdims=True)
    return float((most[:, 0] + np.log(np.exp(scaled - most).sum(axis=1))).mean() / SHARPNESS)
