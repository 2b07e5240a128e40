"""Step 11: how busy will the busiest device be on requests that the plan has not seen?

The trace is one sample of the requests that will come. The Bayesian bootstrap makes others of it: each *day* gives every unit
(a request, or a run of a stream: `independent_units`) a weight from an exponential distribution and draws as many units as the trace has
by those weights. A placement's load on each device is known for every unit, so that a day's busiest device is a sum. Draws of sources and
replicas add their own variance. Days are the same for every layer and placement of a trace: peaks can be compared day by day.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from grace_moe.compiled import kernel, part
from grace_moe.placement import LayerPlacement
from grace_moe.planning.constants import DAYS, FORECAST_CELLS, POLISH_TOKENS
from grace_moe.planning.grace.candidates import Candidate, Origin
from grace_moe.planning.grace.predicted_choice import PredictedChoice, predict_choice
from grace_moe.planning.grace.problem import LayerProblem, source_chances
from grace_moe.topology import Topology


def forecast(problem: LayerProblem, layer: LayerPlacement, origin: Origin) -> Candidate:
    """The layer with what is expected of it, on the same tokens and days for all layers and placements of a trace."""
    topology = problem.topology
    tokens = _sample(problem)
    ids, sources = problem.ids[tokens], source_chances(problem)[tokens]
    choice = predict_choice(layer, topology, ids, problem.seed, problem.sends)
    present, unit = np.unique(problem.unit[tokens], return_inverse=True)
    cases, kind = np.eye(topology.num_nodes), np.zeros(len(present), np.int64)
    if problem.requests_unknown:
        cases, case = sources[:1], kind
    elif problem.node_of_request is not None:
        case = kind = problem.node_of_request[present]
    else:
        case = topology.node_of_device[np.arange(len(present)) % topology.num_devices]
    loads, variance = unit_loads(choice, unit, cases)
    return Candidate(
        layer=layer,
        origin=origin,
        peaks=peaks_of_days(loads, variance, topology, case, kind, problem.seed_of_days),
        traffic=float((choice.copies * sources).sum() / max(1, len(ids))),
    )


def _sample(problem: LayerProblem) -> npt.NDArray[np.int64]:
    """The tokens that all layers and placements are judged by: of fewer units where their loads would take too much memory."""
    tokens = np.random.default_rng(problem.seed_of_days).permutation(len(problem.ids))[:POLISH_TOKENS]
    most = FORECAST_CELLS // (problem.topology.num_nodes * problem.topology.num_devices)
    if len(units := np.unique(problem.unit[tokens])) > most:
        tokens = tokens[problem.unit[tokens] < units[most]]
    return tokens


def unit_loads(
    choice: PredictedChoice, unit: npt.NDArray[np.int64], sources: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """`[units, S, D]` pairs that each device is expected to compute for a unit, by case of source; and their variances `[S, D]`.

    The variance is that of drawing sources and replicas, all units together.

    Args:
        unit: `[T]` 0..units - 1.
        sources: `[S, N]` chance of each source node in each case: identity where a unit's tokens come from one node, one row where
            each token's source is its own.
    """
    table = choice.table
    loads = np.zeros((int(unit.max(initial=-1)) + 1, len(sources), len(table.node_of_D)))
    replicas = Replicas(table.devices_ER, table.weights_ER, table.node_of_D, choice.stays)
    variance: npt.NDArray[np.float64] = _add_unit_loads(choice.ids, unit[choice.token], choice.visited, replicas, sources, loads)
    return loads, variance


class Replicas(NamedTuple):
    """Arguments of `unit_loads`, for its kernel."""

    devices: Any
    """`[E, R]`"""
    weights: Any
    node_of: Any
    """`[D]`"""
    stays: Any
    """`[N]`, as `PredictedChoice` has it."""


@kernel
def _add_unit_loads(ids: Any, unit: Any, masks: Any, table: Any, sources: Any, loads: Any) -> Any:
    """Add to `loads`; returns the variances."""
    devices, weights = table.devices, table.weights
    nodes, replicas = masks.shape[1], devices.shape[1]
    variance = np.zeros((loads.shape[1], loads.shape[2]))
    chance = np.empty((nodes, replicas))
    for t in range(ids.shape[0]):
        for e in ids[t]:
            if e < 0:
                continue
            _replica_chances(masks[t], devices[e], weights[e], table, chance)
            for s in range(sources.shape[0]):
                for r in range(replicas):
                    if weights[e, r] > 0:
                        p = 0.0
                        for n in range(nodes):
                            p += sources[s, n] * chance[n, r]
                        loads[unit[t], s, devices[e, r]] += p
                        variance[s, devices[e, r]] += p * (1 - p)
    return variance


@part
def _replica_chances(masks: Any, devices: Any, weights: Any, table: Any, chance: Any) -> None:
    """`chance[n, r]` that a token from node n has its pair computed by replica r: the source's own, else by weight on visited nodes."""
    node_of, stays = table.node_of, table.stays
    for n in range(masks.shape[0]):
        total, own = 0, 0
        for r in range(devices.shape[0]):
            total += weights[r] * (masks[n] >> node_of[devices[r]] & 1)
            own += weights[r] > 0 and node_of[devices[r]] == n
        for r in range(devices.shape[0]):
            here = weights[r] > 0 and node_of[devices[r]] == n
            drawn = weights[r] * (masks[n] >> node_of[devices[r]] & 1) / total
            chance[n, r] = drawn * (1.0 - own * stays[n]) + here * stays[n]


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
