"""One scenario under several policies: the same requests for all, over several seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from grace_moe.adapt.options import AdaptOptions
from grace_moe.adapt.prices import Prices
from grace_moe.adapt.simulate.policies import POLICIES, Policy, Setting
from grace_moe.adapt.simulate.replay import Migration, Outcome, simulate
from grace_moe.adapt.simulate.scenarios import check_scenario, scenario_weights
from grace_moe.adapt.simulate.stream import Pool, StreamOptions
from grace_moe.errors import UsageError
from grace_moe.placement import Placement
from grace_moe.planning import Redundancy, equal_slots, plan
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace

METRICS = ("total_cost", "cross_node_copies", "load_max_over_mean", "moved_copies", "moved_cross_node_bytes", "stall_seconds")
"""Of a row, means over seeds."""


@dataclass(frozen=True, kw_only=True)
class DayOptions:
    """What a day is like, beside its scenario."""

    stream: StreamOptions = field(default_factory=StreamOptions)
    redundancy: Redundancy = 1.25
    expert_bytes: int = 12_582_912
    """Of one expert of one layer; OLMoE's in bfloat16."""
    copy_bytes: int = 8192
    """That a copy of a token sends there and back; OLMoE's in bfloat16."""
    interval: int = 3000
    """Steps between re-plans of the policies on a timer; vLLM's default."""
    window: int = 1000
    """Steps whose loads they go by; vLLM's default."""
    seeds: int = 1
    effort: float = 1.0
    """Of all searches."""

    def __post_init__(self) -> None:
        if min(self.expert_bytes, self.copy_bytes, self.interval, self.window, self.seeds) < 1:
            raise UsageError(f"{self}: bytes, interval, window and seeds are 1 or more")

    @property
    def prices(self) -> Prices:
        """Moves in copies of a token; inside a node they cost a tenth."""
        move = self.expert_bytes / self.copy_bytes
        return Prices(move=move, local_move=move / 10)


@dataclass(frozen=True, kw_only=True)
class Day:
    """A scenario under one policy after another."""

    scenario: str
    outcomes: dict[str, list[Outcome]]
    """Policy -> a day of each seed."""
    by_counts: bool = False
    """Whether balance and moves are all that is counted: nothing is known of copies then."""
    note: str = ""
    """On what the day was measured, where not on other recordings than policies saw."""

    def rows(self) -> list[dict[str, Any]]:
        """One a policy: means over seeds, and least and most of the total cost."""
        rows = []
        for policy, days in self.outcomes.items():
            means = {name: _mean([getattr(day, name) for day in days]) for name in METRICS}
            costs = [day.total_cost for day in days]
            rows.append({"policy": policy, **means, "total_cost_range": [min(costs), max(costs)]})
        return rows

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return {"scenario": self.scenario, "by_counts": self.by_counts, "note": self.note, "rows": self.rows()}


def _mean(values: Sequence[float | None]) -> float | None:
    """None where what was to be counted is unknown."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def run_day(
    traces: Sequence[RoutingTrace],
    topology: Topology,
    scenario: str,
    policies: Sequence[str],
    options: DayOptions,
    *,
    on_step: Callable[[Policy], None] = lambda policy: None,
) -> Day:
    """One of `run_days`."""
    return next(run_days(traces, topology, [scenario], policies, options, on_step=on_step))


def run_days(
    traces: Sequence[RoutingTrace],
    topology: Topology,
    scenarios: Sequence[str],
    policies: Sequence[str],
    options: DayOptions,
    *,
    on_step: Callable[[Policy], None] = lambda policy: None,
) -> Iterator[Day]:
    """Serve a day of each scenario with the domains that the traces are of, one policy after another. All start from the same plan.

    The first trace is what the plans at the start are made on. Of each trace, half of the requests is seen by the policies, and they are
    measured on the others: each seed has halves of its own, at random. A single trace is joined by a second domain: the same requests, with
    its experts' names exchanged at random in each layer.

    `on_step` is told the policy after each step.

    Raises:
        UsageError: an unknown scenario or policy, or a trace of one request.
        MismatchError: traces of different models.
    """
    for name in policies:
        if name not in POLICIES:
            raise UsageError(f"policy {name!r} is unknown; use one of {', '.join(POLICIES)}")
    for scenario in scenarios:
        check_scenario(scenario)
    domains = list(traces) if len(traces) > 1 else [traces[0], renamed(traces[0])]
    adapt = AdaptOptions()
    adapt = replace(adapt, decision=replace(adapt.decision, prices=options.prices, effort=options.effort))
    begins = [_begin(domains, topology, options, seed) for seed in range(options.seeds)]
    migration = Migration(prices=options.prices, expert_bytes=options.expert_bytes)
    for scenario in scenarios:
        outcomes: dict[str, list[Outcome]] = {name: [] for name in policies}
        for seed, begin in enumerate(begins):
            setting = Setting(
                planned_on=begin.seen[0],
                topology=topology,
                slots=begin.slots,
                plan=begin.plan,
                options=adapt,
                weights=scenario_weights(scenario, steps=options.stream.steps, domains=len(domains), seed=seed),
                domains=begin.seen,
                interval=options.interval,
                window=options.window,
                seed=seed,
            )
            for name in policies:
                policy = POLICIES[name](setting)
                day = simulate(policy, *begin.pools, setting.weights, options.stream, migration, seed=2 * seed, on_step=on_step)
                outcomes[name].append(day)
        yield Day(scenario=scenario, outcomes=outcomes)


@dataclass(frozen=True, kw_only=True)
class _Begin:
    """What the days of a seed begin with."""

    seen: list[RoutingTrace]
    """Of each domain, the requests that policies see."""
    pools: tuple[Pool, Pool]
    """Of those, and of the requests that they are measured on."""
    plan: Placement
    slots: int
    """Of each device."""


def _begin(domains: Sequence[RoutingTrace], topology: Topology, options: DayOptions, seed: int) -> _Begin:
    halves = [trace.split_requests(seed) for trace in domains]
    seen, measured = [half[0] for half in halves], [half[1] for half in halves]
    slots = equal_slots(seen[0], topology, redundancy=options.redundancy)
    start = plan(seen[0], topology, slots_per_device=slots, effort=options.effort)
    return _Begin(seen=seen, pools=(Pool(seen), Pool(measured)), plan=start, slots=slots)


def renamed(trace: RoutingTrace) -> RoutingTrace:
    """The trace with the names of each layer's experts exchanged: its structure on other experts."""
    random = np.random.default_rng(0)
    names = np.stack([random.permutation(trace.num_experts) for _ in range(trace.num_layers)]).astype(trace.topk_ids.dtype)
    ids = np.where(trace.topk_ids >= 0, names[np.arange(trace.num_layers)[:, None], np.maximum(trace.topk_ids, 0)], -1)
    return replace(trace, topk_ids=ids.astype(trace.topk_ids.dtype), source=f"{trace.source} (experts renamed)")
