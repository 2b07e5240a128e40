"""Plans for time: each layer takes the fastest of its placements, and the fastest is improved by what its devices carry.

The searches of steps 5 to 12 make the placements: for copies, at several prices of imbalance by the exchange rates, for balance alone, with
all slots and with the fewest. All of them are timed. The floor of balance is EPLB's busiest device
in seconds, or that of the plan for copies, which is within the tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from grace_moe.cost.rates import ExchangeRates, exchange_rates
from grace_moe.cost.step import Setting
from grace_moe.placement import LayerPlacement
from grace_moe.planning.constants import (
    CAPACITY_POWER,
    CAPACITY_ROUNDS,
    DEAREST_NODES,
    LEAST_LOAD,
    MOVE_LIMITS,
    MOVE_TOKENS,
    MOVES,
    TIMED_DEVICE_PRICES,
    TIMED_PRICES,
)
from grace_moe.planning.grace.by_load import floor_of
from grace_moe.planning.grace.candidates import Candidate, Origin, choose_candidates
from grace_moe.planning.grace.clock import Clock, candidate, clock_of, expected, shorter, timed
from grace_moe.planning.grace.expert_moves import MoveLimits, improved
from grace_moe.planning.grace.layer_placement import place_layer
from grace_moe.planning.grace.levelling import levelled
from grace_moe.planning.grace.problem import LayerProblem
from grace_moe.planning.grace.slots_by_memory import within_slots
from grace_moe.planning.grace.tuning import plan_layers
from grace_moe.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Try:
    """A placement, and the problem that it was found for, to go on from."""

    problem: LayerProblem
    layer: LayerPlacement
    copies: npt.NDArray[np.int64] | None = None
    """`[N, E]` on the nodes; None = levelled, for balance alone."""


def plan_layers_for_time(
    problems: Sequence[LayerProblem], setting: Setting, tolerance: float, threads: int, on_layer: Callable[[], None]
) -> list[Candidate]:
    """The placement of every layer.

    Args:
        tolerance: seconds that the busiest device may compute, over EPLB's, mean over layers.
        threads: layers at once; the plan does not depend on it.
        on_layer: called as each layer has a placement for copies, and again as it has one for time.
    """
    by_copies = plan_layers(problems, tolerance, threads, on_layer)
    rates = exchange_rates(problems[0].topology, setting.model, phase=setting.phase, batch=setting.batch, backend=setting.backend)
    rows: list[list[Candidate]] = []
    with ThreadPoolExecutor(threads) as pool:
        for row in pool.map(partial(_candidates, setting, rates, tolerance), problems, by_copies):
            rows.append(row)
            on_layer()
    floors = np.stack([np.maximum(row[0].peaks, row[-1].peaks) for row in rows])  # what is planned for copies is within the tolerance
    # The busiest device is part of the time, whose doubt counts already (`clock.candidate`): it is within the tolerance as expected.
    chosen = choose_candidates(_in_shares(rows), floors, tolerance, doubt=0.0) or tuple(len(row) - 1 for row in rows)
    return [row[index] for row, index in zip(rows, chosen, strict=True)]


def _in_shares(rows: list[list[Candidate]]) -> list[list[Candidate]]:
    """The candidates with times over the mean layer's, as rates are."""
    mean = float(np.mean([row[-1].traffic for row in rows]))
    return [[replace(one, traffic=one.traffic / mean) for one in row] for row in rows]


def _candidates(setting: Setting, rates: ExchangeRates, tolerance: float, problem: LayerProblem, by_copies: Candidate) -> list[Candidate]:
    """Placements of one layer with their times; the first is that for copies, the last is the floor."""
    as_it_is, slots = math.isinf(tolerance), problem.slots_of_devices
    clock = clock_of(problem, setting, as_it_is=as_it_is)
    load = np.bincount(problem.ids[problem.ids >= 0], minlength=problem.experts).astype(float)

    def fitting(layer: LayerPlacement) -> LayerPlacement:
        return within_slots(layer, problem.topology, slots, load)

    by_copies = replace(by_copies, layer=fitting(by_copies.layer))
    kept = timed(clock, by_copies.layer)

    def timed_as(layer: LayerPlacement, origin: Origin) -> Candidate:
        fits = fitting(layer)
        return candidate(clock, fits, origin, timed(clock, fits), kept)

    floor = timed_as(floor_of(problem).layer, "eplb")
    found = [candidate(clock, by_copies.layer, by_copies.origin, kept, kept)]
    if not problem.searchable:
        return [*found, floor]
    found += [timed_as(replace(floor.layer, replica_choice=choice), "eplb") for choice in ("tar", "joint")]
    tries = list(_tries(problem, setting, rates))
    of_tries = [timed_as(each.layer, "search") for each in tries]
    found += of_tries
    if _irregular(problem.topology):
        best = min(range(len(tries)), key=lambda index: of_tries[index].traffic)
        found += [timed_as(layer, "search") for layer in _reshaped(clock, tries[best])]
    busiest = math.inf if as_it_is else max(float(floor.peaks.mean()), float(kept.busiest.mean()))
    within = [each for each in found if expected(clock, each.peaks) <= tolerance * busiest] or found
    short = shorter(clock, MOVE_TOKENS)
    starts = {each.layer: each for each in sorted(within, key=lambda each: each.traffic)}
    for number, (start, share) in enumerate(zip(starts.values(), MOVE_LIMITS, strict=False)):
        limits = MoveLimits(slots=slots, busiest=share * busiest)
        moved = improved(short, start.layer, limits, int(MOVES * problem.effort), [problem.seed, number])
        found.append(timed_as(moved, start.origin))
    return [*found, floor]


def _tries(problem: LayerProblem, setting: Setting, rates: ExchangeRates) -> Iterator[Try]:
    """Placements from nothing: for balance alone, and at each price of imbalance. In decode with the fewest slots: a replica is one more
    expert to read."""
    fewest = -(-problem.experts // problem.topology.num_devices)
    own = replace(problem, slots=min(fewest, problem.slots)) if setting.phase == "decode" else problem
    if (layer := levelled(own)) is not None:
        for choice in ("wrr", "tar"):
            yield Try(problem=own, layer=replace(layer, replica_choice=choice))
    if own.topology.num_nodes == 1:
        for price in TIMED_DEVICE_PRICES:
            priced = replace(own, device_price=price)
            layer, copies = place_layer(priced, 1, None)
            yield Try(problem=priced, layer=layer, copies=copies)
        return
    found: npt.NDArray[np.int64] | None = None
    for price in _prices(problem, rates):
        priced = replace(own, imbalance_price=price)
        layer, found = place_layer(priced, 1, found)
        yield Try(problem=priced, layer=layer, copies=found)
    if _irregular(problem.topology):
        yield from _from_one_node(own, _prices(problem, rates)[0])


def _from_one_node(problem: LayerProblem, price: float) -> Iterator[Try]:
    """Placements for tokens that all come from one node, as if others cost nothing: that of the dearest links may be all that counts."""
    requests = int(problem.unit.max(initial=0)) + 1
    for node in _dearest_nodes(problem.topology):
        for imbalance_price in (0.0, price):
            pinned = replace(problem, imbalance_price=imbalance_price, node_of_request=np.full(requests, node))
            layer, copies = place_layer(pinned, 1, None)
            yield Try(problem=replace(problem, imbalance_price=imbalance_price), layer=layer, copies=copies)


def _dearest_nodes(topology: Topology) -> list[int]:
    """The nodes whose links to others are slowest, at most `DEAREST_NODES`."""
    node, far = topology.node_of_device, topology.node_of_device[:, None] != topology.node_of_device
    if topology.bandwidth is None:
        return list(range(min(topology.num_nodes, DEAREST_NODES)))
    seconds = np.divide(1.0, np.array(topology.bandwidth), out=np.zeros(far.shape), where=far).sum(axis=1)
    return [int(place) for place in np.argsort(-np.bincount(node, seconds), kind="stable")[:DEAREST_NODES]]


def _prices(problem: LayerProblem, rates: ExchangeRates) -> list[float]:
    """Copies per token that a unit of squared imbalance is worth: by what a copy and a pair cost, and as many pairs as a token has."""
    sent = {"nodes": rates.cross_node_copy, "devices": rates.cross_node_copy, "pairs": rates.cross_node_pair, "everything": 0.0}
    copy = sent[problem.sends]
    pairs = float((problem.ids >= 0).sum()) / max(1, len(problem.ids))
    rate = pairs * (rates.pair or rates.active_expert / 100) / copy if copy else 1.0
    return [step * rate for step in TIMED_PRICES]


def _irregular(topology: Topology) -> bool:
    """Whether a device's share of the load is more than a matter of its speed, or links are not all alike."""
    return topology.bandwidth is not None or bool(topology.tiers) or len(set(topology.relative_speed.tolist())) > 1


def _reshaped(clock: Clock, start: Try) -> list[LayerPlacement]:
    """The placement again, with shares of the load by what the devices carried, round by round."""
    found, layer = [], start.layer
    speed, copies = start.problem.topology.relative_speed.copy(), start.copies
    for _ in range(CAPACITY_ROUNDS):
        carried = timed(clock, layer).carried
        speed *= (carried.mean() / np.maximum(carried, LEAST_LOAD * carried.mean())) ** CAPACITY_POWER
        problem = replace(start.problem, topology=_with_speeds(start.problem.topology, speed))
        if copies is not None:
            layer, copies = place_layer(problem, 1, copies)
        else:
            layer = replace(levelled(problem) or layer, replica_choice=start.layer.replica_choice)
        found.append(layer)
    return found


def _with_speeds(topology: Topology, speed: npt.NDArray[np.float64]) -> Topology:
    """The topology with devices of these speeds."""
    speeds = iter((speed / speed.mean()).tolist())
    nodes = tuple(
        replace(node, devices=tuple(replace(device, relative_speed=next(speeds)) for device in node.devices)) for node in topology.nodes
    )
    return replace(topology, nodes=nodes)
