"""Replay a day under one policy: what each step costs, what moves, and how long serving stops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from grace_moe.adapt.prices import Prices
from grace_moe.adapt.request_costs import routed
from grace_moe.adapt.schedule import Move, stages_of
from grace_moe.adapt.simulate.policies import Policy, TokenPolicy
from grace_moe.adapt.simulate.stream import Pool, StepTokens, StreamOptions, stream
from grace_moe.placement import Placement
from grace_moe.topology import Topology

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A day under one policy. Costs are copies per token and layer, imbalance and moves priced alike for all policies."""

    total_cost: float
    """Mean over steps, moves included."""
    cross_node_copies: float | None
    """Per token, mean over layers and steps; None where counts alone are known, and cost has no copies in it."""
    load_max_over_mean: float
    """Of a step's pairs, mean over layers and steps."""
    moved_copies: int
    moved_cross_node_bytes: int
    stall_seconds: float
    """In which serving stood still, where the policy stops it."""
    cost_of_steps: tuple[float, ...]
    """Of each step, moves left out."""
    moved_in_steps: tuple[int, ...]
    """Copies that arrived in each step."""


@dataclass(frozen=True, kw_only=True)
class Migration:
    """How moves are carried out."""

    prices: Prices
    expert_bytes: int
    rounds_per_step: int = 1
    """Rounds of moves beside a step; policies that stop serving do all of them at once."""


class _Layers:
    """What the pool's tokens cost under the placement that serves: sums from the first token on, so that a stretch costs two look-ups."""

    def __init__(self, pool: Pool, topology: Topology, source: Ints) -> None:
        tokens, layers, _ = pool.topk_ids.shape
        self._pool, self._topology, self._source = pool, topology, source
        self._copies = np.zeros((tokens + 1, layers), np.int32)
        self._pairs = np.zeros((tokens + 1, layers, topology.num_devices), np.int32)
        self._known: list[object] = [None] * layers

    def serve(self, placement: Placement) -> None:
        """Route what the placement changes."""
        for index, layer in enumerate(placement.layers):
            if self._known[index] is layer:
                continue
            ids = self._pool.topk_ids[:, index].astype(np.int64)
            devices, copies = routed(layer, self._topology, placement.replica_choice, ids, self._source, np.arange(len(ids)))
            for device in range(self._topology.num_devices):
                np.cumsum((devices == device).sum(axis=1), out=self._pairs[1:, index, device])
            np.cumsum(copies, out=self._copies[1:, index])
            self._known[index] = layer

    def step(self, tokens: StepTokens) -> tuple[float, float]:
        """Copies per token, and the busiest device over the mean, of a step: means over layers."""
        end = tokens.first + tokens.count
        copies = self._copies[end].sum() - self._copies[tokens.first].sum()
        load = (self._pairs[end] - self._pairs[tokens.first]).sum(axis=0) / self._topology.relative_speed
        mean = load.mean(axis=1)
        peak = np.divide(load.max(axis=1), mean, out=np.ones(len(load)), where=mean > 0)
        return float(copies / (tokens.count.sum() * len(load))), float(peak.mean())


def simulate(
    policy: TokenPolicy,
    seen: Pool,
    measured: Pool,
    weights: npt.NDArray[np.float64],
    options: StreamOptions,
    migration: Migration,
    *,
    seed: int = 0,
    on_step: Callable[[Policy], None] = lambda policy: None,
) -> Outcome:
    """One day. The policy sees requests of `seen`; steps cost what requests of `measured` cost, drawn by the same shares.

    `on_step` is told the policy after each step.
    """
    topology = policy.serving.topology
    source = np.repeat(np.arange(len(measured.sizes)), measured.sizes) % topology.num_devices
    layers, serving = _Layers(measured, topology, source), ServingDay(policy, migration)
    steps = zip(stream(seen, weights, options, seed), stream(measured, weights, options, seed + 1), strict=True)
    for sees, costs in steps:
        layers.serve(policy.serving)
        copies, peak = layers.step(costs)
        serving.step(copies, peak, tokens=int(costs.count.sum()))
        policy.see(seen.topk_ids[sees.token], sees.request)
        serving.move()
        on_step(policy)
    return serving.outcome()


Waiting = list[tuple[tuple[int, ...], tuple[Move, ...]]]
"""Rounds to come, each with the layers of its stage."""


def _switched(serving: Placement, target: Placement, waiting: Waiting) -> Placement:
    """Layers of stages that have all arrived take the target's; the others stay whole."""
    late = {layer for layers, _ in waiting for layer in layers}
    layers = tuple(old if index in late else new for index, (old, new) in enumerate(zip(serving.layers, target.layers, strict=True)))
    return replace(target, layers=layers)


class ServingDay:
    """Carries out a policy's moves beside its steps, and adds up what both cost."""

    def __init__(self, policy: Policy, migration: Migration) -> None:
        self._policy, self._migration = policy, migration
        self._target = policy.serving
        self._waiting: Waiting = []
        self._copies: list[float | None] = []
        self._peaks: list[float] = []
        self._moved: list[int] = []
        self._moves_cost = self._stall = 0.0
        self._far = 0
        self._tokens = 0

    def step(self, copies: float | None, peak: float, *, tokens: int) -> None:
        """One step's copies per token (None = unknown, on every step) and busiest device over the mean."""
        self._copies.append(copies)
        self._peaks.append(peak)
        self._moved.append(0)
        self._tokens += tokens

    def move(self) -> None:
        """After a step: what the policy wants now, and the moves that go beside this step."""
        policy = self._policy
        wanted = policy.wanted()
        if wanted is not None:
            self._target = wanted.placement
            stages = stages_of(wanted.placement, policy.serving, first=wanted.first)
            self._waiting = [(stage.layers, moves) for stage in stages for moves in stage.rounds]
            policy.serving = _switched(policy.serving, self._target, self._waiting)  # layers whose replicas' shares alone change
        if self._waiting:
            now = self._waiting if policy.stops or policy.free else self._waiting[: self._migration.rounds_per_step]
            self._waiting = self._waiting[len(now) :]
            if not policy.free:
                self._count([moves for _, moves in now])
            if {layers for layers, _ in now} - {layers for layers, _ in self._waiting[:1]}:  # a stage is complete
                policy.serving = _switched(policy.serving, self._target, self._waiting)

    def _count(self, rounds: Sequence[Sequence[Move]]) -> None:
        topology, migration = self._policy.serving.topology, self._migration
        node = topology.node_of_device
        for moves in rounds:
            far = sum(bool(node[move.source] != node[move.target]) for move in moves)
            self._far += far
            self._moved[-1] += len(moves)
            self._moves_cost += migration.prices.of_moves(len(moves), far)
            if self._policy.stops:
                link = topology.cross_node if far else topology.intra_node
                self._stall += link.latency_s + migration.expert_bytes / link.bandwidth_bytes_per_s

    def outcome(self) -> Outcome:
        """The day's sums."""
        known = [copies for copies in self._copies if copies is not None]
        copies = np.array(known) if known else np.zeros(len(self._peaks))
        steps = copies + self._migration.prices.imbalance * (np.array(self._peaks) - 1)
        layers = len(self._policy.serving.layers)
        return Outcome(
            total_cost=float(steps.mean()) + self._moves_cost / max(1, self._tokens * layers),
            cross_node_copies=float(copies.mean()) if known else None,
            load_max_over_mean=float(np.mean(self._peaks)),
            moved_copies=sum(self._moved),
            moved_cross_node_bytes=self._far * self._migration.expert_bytes,
            stall_seconds=self._stall,
            cost_of_steps=tuple(steps.tolist()),
            moved_in_steps=tuple(self._moved),
        )
