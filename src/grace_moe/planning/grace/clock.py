"""What a placement is expected to take, by `cost`, on the requests of the trace and on others like them.

A sample of tokens is sent through the placement by its own replica choice, and counted. Requests are dealt into parts. A *day* draws as
many parts as there are, with replacement: what a port sends and a device computes strays from day to day as it will on other requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from grace_moe.cost.flow_counter import FlowCounter, SlotCounter
from grace_moe.cost.flows import BETWEEN_NODES, FLAT, INSIDE_NODES, PAIRS, TAKEN, Flows
from grace_moe.cost.links import Tiers, tiers_of
from grace_moe.cost.sent import Sends, sends_of
from grace_moe.cost.step import Setting, layer_seconds
from grace_moe.placement import LayerPlacement
from grace_moe.planning.constants import CLOCK_PARTS, CLOCK_TOKENS, DOUBT_IN_TIME, TIMED_DAYS
from grace_moe.planning.grace.candidates import Candidate, Origin
from grace_moe.planning.grace.predicted_choice import chosen_devices
from grace_moe.planning.grace.problem import LayerProblem
from grace_moe.topology import Topology

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_KINDS: dict[Sends, list[int]] = {"nodes": [BETWEEN_NODES, INSIDE_NODES], "devices": [FLAT], "pairs": [PAIRS], "everything": []}
"""The kinds of copies that a device takes in."""


@dataclass(frozen=True, kw_only=True)
class Clock:
    """The tokens that all placements of a layer are timed on, and how they are served. T tokens, D devices, P parts."""

    ids: Ints
    """`[T, k]` choices, -1 = none."""
    source: Ints
    """`[T]` device on which each token comes in: as many on each."""
    part: Ints
    """`[T]` the part of the requests that each token belongs to."""
    days: Floats
    """`[1 + DAYS, P]` how often each part is drawn, over its expectation; first the trace as it is."""
    unseen: float
    """Share of the pairs that go to all experts alike, as those of one more request might of which nothing is known: an expert that hardly
    fires in the trace is not read for nothing."""
    topology: Topology
    tiers: Tiers
    setting: Setting
    as_it_is: bool
    """Whether the trace is all that counts, and not other requests like it."""
    seed: int


@dataclass(frozen=True, kw_only=True)
class Times:
    """Of one layer, on the trace as it is and then on each day."""

    total: Floats
    """`[1 + DAYS]` seconds of the layer."""
    busiest: Floats
    """`[1 + DAYS]` seconds that the busiest device computes."""
    carried: Floats
    """`[D]` seconds that each device computes, and takes in through its port, mean over days: what its load costs."""


def clock_of(problem: LayerProblem, setting: Setting, *, as_it_is: bool = False) -> Clock:
    """The clock of a layer, on the same tokens and days for all of its placements.

    Args:
        as_it_is: whether nothing but the trace will come: nothing is unseen.
    """
    generator = np.random.default_rng(problem.seed_of_days)
    tokens = generator.permutation(len(problem.ids))[:CLOCK_TOKENS]
    devices = problem.topology.num_devices
    rounds = max(1, min(CLOCK_TOKENS // max(1, len(tokens)), devices))
    source = (np.arange(len(tokens)) + np.arange(rounds)[:, None]).ravel() % devices
    tokens = np.tile(tokens, rounds)  # each token of a short trace comes in on several devices: what counts is its routing
    _, unit = np.unique(problem.unit[tokens], return_inverse=True)
    parts = int(min(CLOCK_PARTS, unit.max(initial=0) + 1))
    days = generator.multinomial(parts, np.full(parts, 1 / parts), size=TIMED_DAYS).astype(float)
    return Clock(
        ids=problem.ids[tokens],
        source=source,
        part=unit % parts,
        days=np.concatenate([np.ones((1, parts)), days]),
        unseen=0.0 if as_it_is else 1 / (int(problem.unit.max(initial=0)) + 2),
        topology=problem.topology,
        tiers=tiers_of(problem.topology),
        setting=setting,
        as_it_is=as_it_is,
        seed=problem.seed,
    )


def shorter(clock: Clock, tokens: int) -> Clock:
    """The clock with fewer tokens, for many placements; without days where the trace is all that counts."""
    some = slice(0, tokens)
    fewer = replace(clock, ids=clock.ids[some], source=clock.source[some], part=clock.part[some])
    return replace(fewer, part=np.zeros_like(fewer.part), days=np.ones((1, 1))) if clock.as_it_is else fewer


def expected(clock: Clock, days: Floats) -> float:
    """Of a time on the trace as it is and on each day: what counts, the mean. A placement that is even on the trace alone is slower on most
    days than on the trace."""
    return float(days[0] if clock.as_it_is else days.mean())


def chosen_by(clock: Clock, layer: LayerPlacement) -> Ints:
    """`[T, k]` device that computes each pair."""
    return chosen_devices(layer, clock.topology, clock.ids, clock.source, clock.seed)


def chosen_again(clock: Clock, layer: LayerPlacement, chosen: Ints, changed: Sequence[int]) -> Ints:
    """The same after a change of some experts' replicas: only their tokens choose again.

    Args:
        chosen: before it.
    """
    if not changed:
        return chosen_by(clock, layer)
    touched = np.zeros(len(layer.devices_of_expert) + 1, bool)  # the last is that of none, -1
    touched[list(changed)] = True
    tokens = np.flatnonzero(touched[clock.ids].any(axis=1))
    after = chosen.copy()
    after[tokens] = chosen_devices(layer, clock.topology, clock.ids[tokens], clock.source[tokens], clock.seed, tokens)
    return after


def timed(clock: Clock, layer: LayerPlacement, chosen: Ints | None = None) -> Times:
    """What a placement of the layer takes.

    Args:
        chosen: `chosen_by` of it, where that is known.
    """
    flows = _by_day(clock, layer, chosen_by(clock, layer) if chosen is None else chosen)
    if clock.unseen:
        flows = _with_unseen(flows, layer, clock.unseen)
    seconds = layer_seconds(flows, clock.topology, clock.setting)
    busiest = seconds["compute"] + seconds["idle"]
    total = seconds["dispatch"] + seconds["combine"] + busiest - seconds["hidden"]
    return Times(total=total, busiest=busiest, carried=_carried(flows, clock, seconds))


def candidate(clock: Clock, layer: LayerPlacement, origin: Origin, times: Times, kept: Times) -> Candidate:
    """A placement with what is expected of it: `peaks` are seconds of the busiest device, `traffic` is the layer's `expected` time.

    One that may well be slower than the one for copies is given the time that it may take.

    Args:
        kept: times of the plan for copies.
    """
    seconds, doubt = expected(clock, times.total), 0.0 if clock.as_it_is else DOUBT_IN_TIME
    worst = seconds + doubt * float((times.total - kept.total)[1:].std())
    return Candidate(layer=layer, origin=origin, peaks=times.busiest, traffic=worst if worst > expected(clock, kept.total) else seconds)


def _by_day(clock: Clock, layer: LayerPlacement, chosen: Ints) -> Flows:
    """The flows of the layer on every day, as if days were layers; each day has as many tokens."""
    devices, parts = clock.topology.num_devices, clock.days.shape[1]
    slots, copies = SlotCounter(layer, devices, parts), FlowCounter(clock.topology, clock.tiers, parts)
    slots.add(clock.ids, chosen, clock.part)
    copies.add(chosen, clock.source, clock.part)
    sizes = np.bincount(clock.part, minlength=parts).astype(float)
    weights = clock.days * sizes.sum() / np.maximum(clock.days @ sizes, 1e-12)[:, None]
    return Flows(
        tokens=np.bincount(clock.source, minlength=devices).astype(float),
        ports=np.tensordot(weights, copies.ports, 1),
        per_rate=None if copies.bandwidth is None else np.tensordot(weights, copies.per_rate, 1),
        slot_device=np.tile(slots.keys % devices, (len(weights), 1)),
        slot_pairs=weights @ slots.pairs.reshape(parts, -1),
    )


def _with_unseen(flows: Flows, layer: LayerPlacement, share: float) -> Flows:
    """The flows with this share of the pairs on all experts alike, on their replicas by weight."""
    rows = zip(layer.devices_of_expert, layer.replica_weights, strict=True)
    weights = np.array([weight for row in rows for _, weight in sorted(zip(*row, strict=True))])  # in the order of `SlotCounter`
    alike = flows.slot_pairs.sum(axis=1, keepdims=True) / len(layer.devices_of_expert) * weights
    return replace(flows, slot_pairs=(1 - share) * flows.slot_pairs + share * alike)


def _carried(flows: Flows, clock: Clock, seconds: dict[str, Floats]) -> Floats:
    """`[D]` computing, by pairs over speed, and dispatch and combine, by what each device takes in."""
    load = flows.pairs_of_device().mean(axis=0) / clock.topology.relative_speed
    rates = np.array([link.bandwidth_bytes_per_s for link in clock.tiers.links])
    ports = (flows.ports / rates).sum(axis=-1) if flows.per_rate is None else flows.per_rate
    taken = ports[:, _KINDS[sends_of(clock.setting.backend)], TAKEN].sum(axis=1).mean(axis=0)
    port = float((seconds["dispatch"] + seconds["combine"]).mean())
    compute = float((seconds["compute"] + seconds["idle"]).mean())
    return np.asarray(port * taken / max(float(taken.max()), 1e-30) + compute * load / max(float(load.max()), 1e-30))
