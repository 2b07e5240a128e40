"""Which replicas decode uses: where steps are bound by memory, a layer takes as long as the device with the most distinct active experts.

A replica that serves prefill well (it spreads a hot expert's tokens, or saves a copy) makes one more device read the expert's weights in
decode (METRO, arXiv 2512.09277: some optimum sends all tokens of an expert to one replica). So replicas are given up in decode, one by
one: the one that takes most off the expected maximum of active experts for what it adds in copies between nodes and load of the busiest
device, as long as both stay within bounds, and as far as it pays. Unlike METRO's, the choice is made once, by the trace, and needs no
exchange at run time.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from grace_moe.choice.tables import choice_table
from grace_moe.placement import LayerPlacement
from grace_moe.planning.task import PlannedLayers, PlanningTask
from grace_moe.topology import Topology
from grace_moe.trace import DECODE

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

SAMPLE_TOKENS = 4096
"""Tokens of the sampled batches, at least; whole batches."""
LEAST_BATCHES = 16
SHARPNESS = 1.0
"""Of the soft maximum over devices that ranks replicas: the maximum itself would see nothing in what only the second busiest lose."""
NO_DECODE = "no decode tokens in the trace: decode's replicas were chosen by all of its tokens"
NOTHING_SPARED = "decode experts has no effect: no replica can be given up within the bounds"
LEAST_RETURN = 0.25
"""Share by which active experts must fall for each share by which copies rise: a device that can't get below the others buys nothing."""
LEAST_COST = 0.1
"""Share of the bounds that a replica's loss counts as at least: what is free but helps little must not come first."""


@dataclass(frozen=True, kw_only=True)
class DecodeBounds:
    """What fewer active experts may cost, and at which size of batch they are counted."""

    copies: float
    """Most that copies between nodes may rise, over all layers, as a share of them."""
    load: float
    """Most that the busiest device's pairs (over its speed) may rise in a layer, as a share of them."""
    batch: int
    """Tokens of a decode batch over all devices."""


@dataclass(frozen=True, kw_only=True)
class DecodeProblem:
    """One layer's decode batches, and what may be given up."""

    layer: LayerPlacement
    topology: Topology
    policy: str
    """Of `placement.REPLICA_CHOICES`, where the layer has none of its own."""
    ids: Ints
    """`[M * B, k]` choices of M batches of B tokens, batch by batch; -1 = none."""
    sources: Ints
    """`[M * B]` source device of each token."""
    bounds: DecodeBounds
    """Of batches of B tokens."""
    seed: int


def sample_batches(request: Ints, batch: int, seed: int) -> Ints:
    """`[M * B]` tokens: batch by batch, one of each of B requests drawn at random; of some twice where there are fewer than B.

    Args:
        request: `[T]` 0, 1, ...: the request of each token; each has at least one.
    """
    generator = np.random.default_rng(seed)
    order = np.argsort(request, kind="stable")
    sizes = np.bincount(request)
    starts = np.cumsum(sizes) - sizes
    batches = max(LEAST_BATCHES, -(-SAMPLE_TOKENS // batch))
    rounds, rest = divmod(batch, len(sizes))
    everyone = np.tile(np.arange(len(sizes)), rounds)
    drawn = [np.concatenate([everyone, generator.choice(len(sizes), rest, replace=False)]) for _ in range(batches)]
    chosen = np.concatenate(drawn)
    tokens: Ints = order[starts[chosen] + (generator.random(len(chosen)) * sizes[chosen]).astype(np.int64)]
    return tokens


class _State:
    """What the batches cost with the replicas that are in use."""

    def __init__(self, problem: DecodeProblem) -> None:
        self.problem = problem
        topology = problem.topology
        self.node, self.speed = topology.node_of_device, topology.relative_speed
        self.experts = len(problem.layer.devices_of_expert)
        self.batch_of_token = np.arange(len(problem.ids)) // problem.bounds.batch
        hosts, weights = problem.layer.devices_of_expert, problem.layer.replica_weights
        self.used = [dict(zip(devices, shares, strict=True)) for devices, shares in zip(hosts, weights, strict=True)]
        self.devices = self._choose(self.layer(), np.arange(len(problem.ids)))
        shape = (int(self.batch_of_token.max()) + 1, self.experts, topology.num_devices)
        self.pairs = np.zeros(shape, dtype=np.int32)
        self._add(self.pairs, np.arange(len(problem.ids)), self.devices, 1)
        self.active: Ints = (self.pairs > 0).sum(axis=1)
        self.copies = self._copies(np.arange(len(problem.ids)), self.devices)
        self.load: Floats = self.pairs.sum(axis=(0, 1)) / self.speed

    def without(self, expert: int, device: int) -> _Change:
        """What changes if this replica is given up."""
        tokens = np.flatnonzero((self.problem.ids == expert).any(axis=1))
        row = self.used[expert]
        self.used[expert] = {d: w for d, w in row.items() if d != device}
        devices = self._choose(self.layer(), tokens)
        self.used[expert] = row
        moved = (devices != self.devices[tokens]).any(axis=1)
        tokens, devices = tokens[moved], devices[moved]
        experts = np.unique(self.problem.ids[tokens])
        experts = experts[experts >= 0]
        place = np.zeros(self.experts, dtype=np.int64)
        place[experts] = np.arange(len(experts))
        before = self.pairs[:, experts]
        after = before.copy()
        for sign, chosen in ((-1, self.devices[tokens]), (1, devices)):
            self._add(after, tokens, chosen, sign, place)
        active = self.active + ((after > 0).astype(np.int64) - (before > 0)).sum(axis=1)
        return _Change(
            expert=expert,
            device=device,
            tokens=tokens,
            devices=devices,
            experts=experts,
            pairs=after,
            active=active,
            copies=self.copies - self._copies(tokens, self.devices[tokens]) + self._copies(tokens, devices),
            load=self.load + (after - before).sum(axis=(0, 1)) / self.speed,
        )

    def make(self, change: _Change) -> None:
        """Give the replica up."""
        del self.used[change.expert][change.device]
        self.devices[change.tokens] = change.devices
        self.pairs[:, change.experts] = change.pairs
        self.active, self.copies, self.load = change.active, change.copies, change.load

    def layer(self) -> LayerPlacement:
        """The layer with the replicas in use, by their weights among each other; evenly where those have none."""
        layer = self.problem.layer
        return replace(
            layer,
            devices_of_expert=tuple(tuple(row) for row in self.used),
            replica_weights=tuple(tuple(_shares(list(row.values()))) for row in self.used),
        )

    def _choose(self, layer: LayerPlacement, tokens: Ints) -> Ints:
        problem = self.problem
        table = choice_table(layer, problem.topology, problem.policy)
        chosen: Ints = table.choose(layer.layer_id, problem.ids[tokens], problem.sources[tokens], tokens, seed=problem.seed)
        return chosen

    def _add(self, pairs: npt.NDArray[np.int32], tokens: Ints, devices: Ints, sign: int, place: Ints | None = None) -> None:
        row, k = np.nonzero(devices >= 0)
        experts = self.problem.ids[tokens[row], k]
        np.add.at(pairs, (self.batch_of_token[tokens[row]], experts if place is None else place[experts], devices[row, k]), sign)

    def _copies(self, tokens: Ints, devices: Ints) -> int:
        """(token, other node) copies."""
        reached = np.zeros((len(tokens), self.problem.topology.num_nodes + 1), dtype=bool)
        reached[np.arange(len(tokens))[:, None], np.where(devices >= 0, self.node[devices], -1)] = True
        reached[np.arange(len(tokens)), self.node[self.problem.sources[tokens]]] = False
        return int(reached[:, :-1].sum())


@dataclass(frozen=True, kw_only=True)
class _Change:
    """A replica given up: the tokens that move, and what the batches cost then."""

    expert: int
    device: int
    tokens: Ints
    devices: Ints
    experts: Ints
    """Those with tokens that move."""
    pairs: npt.NDArray[np.int32]
    """`[M, those experts, D]`"""
    active: Ints
    """`[M, D]`"""
    copies: int
    load: Floats


def with_decode_weights(planned: PlannedLayers, request: PlanningTask, sources: Ints, bounds: DecodeBounds) -> PlannedLayers:
    """The same plan, its layers with `decode_weights` where fewer replicas serve decode better; deterministic.

    Goes by the trace's decode tokens, or by all where it has none.

    Args:
        sources: `[T]` source device of each token of the trace.
    """
    trace = request.trace
    tokens = np.arange(trace.num_tokens)
    notes = planned.notes
    if trace.phase is not None and (trace.phase == DECODE).any():
        tokens = np.flatnonzero(trace.phase == DECODE)
    else:
        notes = (*notes, NO_DECODE)
    if not len(tokens):
        return replace(planned, notes=notes)
    _, request_of_token = np.unique(trace.requests[tokens], return_inverse=True)
    tokens = tokens[sample_batches(request_of_token, bounds.batch, request.seed)]
    problems = [
        DecodeProblem(
            layer=layer,
            topology=request.topology,
            policy=planned.replica_choice,
            ids=trace.topk_ids[tokens, index].astype(np.int64),
            sources=sources[tokens],
            bounds=bounds,
            seed=request.seed,
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
    before = [_State(problem).copies for problem in problems]
    allowed = sum(before) * problems[0].bounds.copies
    courses = [_course(problem, allowed) for problem in problems]
    chosen = [0] * len(problems)
    while True:
        # The step of any layer, over as many replicas as it takes, that gains most for its copies.
        steps = [
            (_return(course[at], course[to], copies), -layer, to)
            for layer, (course, at, copies) in enumerate(zip(courses, chosen, before, strict=True))
            for to in range(at + 1, len(course))
            if course[to].copies - course[at].copies <= allowed
        ]
        gain, layer, to = max(steps, default=(0.0, 0, 0))
        if gain <= LEAST_RETURN:
            break
        allowed -= courses[-layer][to].copies - courses[-layer][chosen[-layer]].copies
        chosen[-layer] = to
    return tuple(
        _with_weights(problem.layer, {point.given_up for point in course[1 : to + 1]})
        for problem, course, to in zip(problems, courses, chosen, strict=True)
    )


@dataclass(frozen=True, kw_only=True)
class _Point:
    """What a layer's batches cost once one more replica is given up."""

    given_up: tuple[int, int]
    """Expert and device; of the first point, none."""
    active: float
    """Most active experts on a device, mean over batches."""
    copies: int


def _return(at: _Point, to: _Point, copies: int) -> float:
    """Share of active experts less for each share of copies more; those that cost none count as the least that can be told."""
    return (1 - to.active / at.active) / max((to.copies - at.copies) / max(copies, 1), 1e-6)


def _course(problem: DecodeProblem, most_more_copies: float) -> list[_Point]:
    """The replicas of one layer that are given up, in this order, and where that leads."""
    state = _State(problem)
    most_copies, most_load = state.copies + most_more_copies, state.load.max() * (1 + problem.bounds.load)
    of_copies = max(state.copies * problem.bounds.copies, 1e-9)
    of_load = max(most_load - state.load.max(), 1e-9)

    def worth(change: _Change) -> float:
        """Active experts less, over what they cost as shares of the bounds; 0 = not to be done."""
        gain = _soft_maximum(state.active) - _soft_maximum(change.active)
        if gain <= 0 or change.copies > most_copies or change.load.max() > most_load:
            return 0.0
        cost = max(change.copies - state.copies, 0) / of_copies + max(change.load.max() - state.load.max(), 0.0) / of_load
        return float(gain / max(cost, LEAST_COST))

    course = [_Point(given_up=(-1, -1), active=_maximum(state.active), copies=state.copies)]
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
        course.append(_Point(given_up=(expert, device), active=_maximum(state.active), copies=state.copies))
    return course


def _with_weights(layer: LayerPlacement, given_up: set[tuple[int, int]]) -> LayerPlacement:
    """The layer, decode using all but these (expert, device) replicas, by their weights among each other."""
    if not given_up:
        return layer
    rows = []
    for expert, (devices, weights) in enumerate(zip(layer.devices_of_expert, layer.replica_weights, strict=True)):
        kept = [(expert, device) not in given_up for device in devices]
        shares = iter(_shares([w for w, keep in zip(weights, kept, strict=True) if keep]))
        rows.append(tuple(next(shares) if keep else 0.0 for keep in kept))
    return replace(layer, decode_weights=tuple(rows))


def _shares(weights: list[float]) -> list[float]:
    total = sum(weights)
    return [w / total for w in weights] if total > 0 else [1 / len(weights)] * len(weights)


def _maximum(active: Ints) -> float:
    """Mean over batches of the most active experts on a device."""
    return max(float(active.max(axis=1).mean()), 1e-9)


def _soft_maximum(active: Ints) -> float:
    """Mean over batches of a smooth maximum over devices."""
    scaled = SHARPNESS * active
    most = scaled.max(axis=1, keepdims=True)
    return float((most[:, 0] + np.log(np.exp(scaled - most).sum(axis=1))).mean() / SHARPNESS)
