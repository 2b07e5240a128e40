"""Whether to move experts, and which, where loads are all that is known: balance over a horizon against what moving costs.

Half of the steps are planned on: each layer is levelled, exchange by exchange, from what serves. The other half judges how much of the way
pays. Nothing is known of which experts fire together, so copies between nodes are not counted, neither as gain nor as harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.adapt.by_counts.levelling import Levelled, levelled, shares_of
from grace_moe.adapt.decide import Decision, DecisionOptions
from grace_moe.adapt.judge import LOW, RESAMPLES, Gain, balance_of, cost_per_token
from grace_moe.adapt.request_costs import RequestCosts
from grace_moe.errors import UsageError
from grace_moe.placement import LayerPlacement, Placement
from grace_moe.topology import Topology

MORE = 1.5
"""Of the budget's mean over layers, the most moves of one layer. Not tuned."""
JUDGES = 8
"""Blocks of steps that are resampled, at most: steps that follow each other are alike. Not tuned."""

Loads = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """A layer some exchanges on, as the steps that judge see it."""

    state: Levelled
    gain: float
    samples: Floats
    """The gain in each bootstrap sample; they are the same for all layers."""
    balance: float
    """Busiest device over the mean."""
    worth: float
    """What is surely saved over the horizon, less the price of the moves."""


def decide_by_counts(serving: Placement, steps: Loads, options: DecisionOptions) -> Decision:
    """Decide by the loads of recent steps. The same arguments give the same decision.

    Args:
        steps: `[S, L, E]` pairs of each expert in each step.

    Raises:
        UsageError: fewer than two steps, or replicas that are not chosen by weight: how they share their tokens is unknown then.
    """
    if len(steps) < 2:
        raise UsageError(f"{len(steps)} steps: one half of them is planned on and the other judges; give 2 or more")
    check_shared_by_weight(serving)
    planned_on, judged_on = _halves(steps)
    copies = int(serving.slots_per_device().sum())
    budget = int(options.budget * copies)
    most = int(MORE * budget / len(serving.layers)) + 1
    ways, served = [], []
    for index, layer in enumerate(serving.layers):
        judged = judged_on[:, index]
        costs = _costs(shares_of(layer, serving.topology.num_devices), judged, serving.topology)
        served.append(balance_of(costs))
        ways.append(_way(layer, serving.topology, planned_on[:, index].sum(axis=0), (judged, costs), most, options))
    return _decision(serving, ways, _chosen(ways, budget), served, options)


def check_shared_by_weight(serving: Placement) -> None:
    """Raise UsageError where a layer's replicas are not chosen by weight."""
    choices = {layer.replica_choice or serving.replica_choice for layer in serving.layers} - {"wrr"}
    if choices:
        raise UsageError(
            f"{serving.source}: replica_choice {min(choices)}: by counts alone it is unknown which replica gets which tokens, unless they "
            "are drawn by weight; plan with --method eplb"
        )


def _halves(steps: Loads) -> tuple[Floats, Floats]:
    """`[blocks, L, E]` twice: blocks of steps that follow each other, in turn for planning and for judging."""
    length = -(-len(steps) // (2 * JUDGES))
    blocks = np.add.reduceat(steps, np.arange(0, len(steps), length), axis=0, dtype=np.float64)
    return blocks[::2], blocks[1::2]


def _way(
    layer: LayerPlacement,
    topology: Topology,
    planned_on: Floats,
    judged: tuple[Floats, RequestCosts],
    most_moves: int,
    options: DecisionOptions,
) -> list[_Stage]:
    """Of one layer: every stage of levelling it.

    Args:
        planned_on: `[E]` loads.
        judged: `[blocks, E]` loads of the steps that judge, and what they cost as the layer serves.
    """
    prices, (loads, served) = options.prices, judged
    weights = np.random.default_rng(options.seed).exponential(size=(RESAMPLES, len(loads)))
    before, before_drawn = cost_per_token(served, prices)[0], cost_per_token(served, prices, weights)
    states = list(levelled(layer, topology, planned_on, most_moves=most_moves))
    costs = [_costs(state.shares, loads, topology) for state in states]
    samples = before_drawn - np.stack([cost_per_token(one, prices, weights) for one in costs])
    surely = np.quantile(samples, LOW, axis=1)
    return [
        _Stage(
            state=state,
            gain=float(before - cost_per_token(cost, prices)[0]),
            samples=drawn,
            balance=balance_of(cost),
            worth=float(sure) * options.horizon - prices.of_moves(state.moved, state.from_other_nodes),
        )
        for state, cost, drawn, sure in zip(states, costs, samples, surely, strict=True)
    ]


def _costs(shares: Floats, steps: Floats, topology: Topology) -> RequestCosts:
    """Of each block of steps, as if it were a request that nothing is sent for."""
    return RequestCosts(tokens=steps.sum(axis=1), copies=np.zeros(len(steps)), pairs=steps @ shares / topology.relative_speed)


def _chosen(ways: Sequence[Sequence[_Stage]], budget: int) -> dict[int, _Stage]:
    """Layer -> how far it goes, with at most so many moves in all: step by step what is worth most for its moves."""
    chosen: dict[int, _Stage] = {}
    best = {index: step for index, way in enumerate(ways) if (step := _next_step(way, None, budget)) is not None}
    while best:
        index = max(best, key=lambda i: (best[i][0], -i))
        stage = best.pop(index)[1]
        more = stage.state.moved - (chosen[index].state.moved if index in chosen else 0)
        if more <= budget:
            budget -= more
            chosen[index] = stage
        step = _next_step(ways[index], chosen.get(index), budget)
        if step is not None:
            best[index] = step
    return chosen


def _next_step(way: Sequence[_Stage], now: _Stage | None, budget: int) -> tuple[float, _Stage] | None:
    """The later stage of a layer that adds most worth for each move, and how much; None where none adds any within the budget."""
    worth, moved = (0.0, 0) if now is None else (now.worth, now.state.moved)
    rates = [
        ((stage.worth - worth) / max(stage.state.moved - moved, 0.5), -stage.state.moved, stage)
        for stage in way
        if stage.worth > worth and stage.state.moved - moved <= budget
    ]
    if not rates:
        return None
    rate, _, stage = max(rates, key=lambda one: one[:2])
    return rate, stage


def _decision(
    serving: Placement, ways: Sequence[Sequence[_Stage]], chosen: dict[int, _Stage], served: Sequence[float], options: DecisionOptions
) -> Decision:
    layers = len(serving.layers)
    moved = sum(stage.state.moved for stage in chosen.values())
    far = sum(stage.state.from_other_nodes for stage in chosen.values())
    samples = sum((stage.samples for stage in chosen.values()), np.zeros(RESAMPLES)) / layers
    gain = Gain(mean=sum(stage.gain for stage in chosen.values()) / layers, low=float(np.quantile(samples, LOW)))
    cost = options.prices.of_moves(moved, far) / options.horizon / layers
    best = sum(max(0.0, *(stage.gain for stage in way)) for way in ways) / layers
    after = tuple(_placed(old, chosen[index].state) if index in chosen else old for index, old in enumerate(serving.layers))
    what = (
        f"{len(chosen)} of {layers} layers: {moved} copies to load save {gain.mean:.3f} (surely {gain.low:.3f}) and cost {cost:.3f}"
        if chosen
        else f"no layer saves surely more than its moves cost, over {options.horizon:,.0f} tokens"
    )
    return Decision(
        placement=replace(serving, layers=after, source="decision") if chosen else None,
        reason=f"by counts alone, so balance, priced as copies per token; copies themselves are unknown: {what}",
        moved=moved,
        from_other_nodes=far,
        gain=gain,
        cost=cost,
        balance=float(np.mean([chosen[index].balance if index in chosen else was for index, was in enumerate(served)])),
        gain_left=max(0.0, best - gain.mean),
        considered=tuple(range(layers)),
        first=tuple(sorted(chosen, key=lambda index: -chosen[index].worth / max(chosen[index].state.moved, 0.5))),
    )


def _placed(old: LayerPlacement, state: Levelled) -> LayerPlacement:
    """The layer as it is levelled. Primaries stay first where they stay."""
    devices, weights = [], []
    now: list[list[int]] = [[] for _ in old.devices_of_expert]
    for expert, device in np.argwhere(state.holds).tolist():
        now[expert].append(device)
    for expert, (hosts, holders) in enumerate(zip(old.devices_of_expert, now, strict=True)):
        held = [device for device in hosts if device in holders] + [device for device in holders if device not in hosts]
        shares = state.shares[expert, held]
        devices.append(tuple(held))
        weights.append(tuple((shares / shares.sum()).tolist()))
    return replace(old, devices_of_expert=tuple(devices), replica_weights=tuple(weights), decode_weights=())
