"""What will the busiest device carry on routing that the plan has not seen?

A placement's load on each device is known for every unit (a request, or a run of a stream: `units`) of the planning trace.
A day to come: how often each unit's like comes up is in doubt (weights drawn from an exponential, the Bayesian bootstrap), and
as many units as the trace has are drawn by those weights; replicas' draws add their own spread. Days are the same for
every layer and placement of a trace, so that peaks can be compared day by day.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from grace_moe.choice.joint import JointChoiceTable
from grace_moe.topology import Topology

DAYS = 64


def unit_loads(
    ids: npt.NDArray[np.int64],
    unit: npt.NDArray[np.int64],
    masks: npt.NDArray[np.int64],
    table: JointChoiceTable,
    sources: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """`[units, S, D]` pairs that each device is expected to compute for a unit, by case of source; and their variances `[S, D]`.

    The variance is that of drawing sources and replicas, all units together.

    Args:
        ids: `[T, k]`, -1 = none.
        unit: `[T]` 0..units - 1.
        masks: `[T, N]` from `visited_nodes`; all ones where replicas are drawn by weight alone.
        sources: `[S, N]` chance of each source node in each case: identity where a unit's tokens come from one node, one row where
            each token's source is its own.
    """
    shape = len(sources), len(table.node_of_D)
    loads, variance = np.zeros((int(unit.max(initial=-1)) + 1, *shape)), np.zeros(shape)
    _unit_loads(ids, unit, masks, table.devices_ER, table.weights_ER, table.node_of_D, sources, loads, variance)
    return loads, variance


@njit(cache=True, nogil=True)
def _unit_loads(ids: Any, unit: Any, masks: Any, devices: Any, weights: Any, node_of: Any, sources: Any, loads: Any, variance: Any) -> None:
    nodes, replicas = masks.shape[1], devices.shape[1]
    chance = np.empty((nodes, replicas))
    for t in range(ids.shape[0]):
        for j in range(ids.shape[1]):
            e = ids[t, j]
            if e < 0:
                continue
            for n in range(nodes):
                total = 0
                for r in range(replicas):
                    total += weights[e, r] * (masks[t, n] >> node_of[devices[e, r]] & 1)
                for r in range(replicas):
                    chance[n, r] = weights[e, r] * (masks[t, n] >> node_of[devices[e, r]] & 1) / total
            for s in range(sources.shape[0]):
                for r in range(replicas):
                    if weights[e, r] > 0:
                        p = 0.0
                        for n in range(nodes):
                            p += sources[s, n] * chance[n, r]
                        loads[unit[t], s, devices[e, r]] += p
                        variance[s, devices[e, r]] += p * (1 - p)


def peaks_of_days(
    loads: npt.NDArray[np.float64],
    variance: npt.NDArray[np.float64],
    topology: Topology,
    case_of_unit: npt.NDArray[np.int64],
    kind_of_unit: npt.NDArray[np.int64],
    seed: int,
) -> npt.NDArray[np.float64]:
    """`[DAYS]` the busiest device's load (over speed) over the mean load.

    Args:
        loads, variance: from `unit_loads`.
        case_of_unit: `[units]` case of source of the unit at each place of the day.
        kind_of_unit: `[units]` a unit is replaced by others of its kind only.
        seed: of the days; the same for all placements to be compared.
    """
    if not loads.sum():
        return np.ones(DAYS)
    rng = np.random.default_rng(seed)
    units, speed = len(loads), topology.relative_speed
    members = np.argsort(kind_of_unit, kind="stable")
    sizes = np.bincount(kind_of_unit)
    last = np.cumsum(sizes)[kind_of_unit] - 1
    first = last + 1 - sizes[kind_of_unit]
    deviation = np.sqrt(np.bincount(case_of_unit, minlength=len(variance)) / units @ variance)
    peaks = np.empty(DAYS)
    for day in range(DAYS):
        reach = np.concatenate([[0.0], rng.exponential(size=units).cumsum()])
        at = reach[first] + rng.random(units) * (reach[last + 1] - reach[first])
        drawn = members[np.clip(np.searchsorted(reach, at, side="right") - 1, first, last)]
        load = loads[drawn, case_of_unit].sum(axis=0) + deviation * rng.standard_normal(len(speed))
        load = np.maximum(load, 0) / speed
        peaks[day] = load.max() / load.mean() if load.any() else 1.0  # of a few tokens a day may have none
    return peaks
