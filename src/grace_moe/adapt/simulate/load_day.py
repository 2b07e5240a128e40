"""One scenario under several policies, of recordings of counts: balance and moves are all that is counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from grace_moe.adapt.by_counts import LoadAdapter
from grace_moe.adapt.options import AdaptOptions
from grace_moe.adapt.simulate.day import Day, DayOptions
from grace_moe.adapt.simulate.load_stream import LoadPool, ServedLoads, load_stream
from grace_moe.adapt.simulate.policies import Following, Foresight, Ints, LoadPolicy, Loads, Policy, Setting, Static, Timer, Wanted
from grace_moe.adapt.simulate.replay import Migration, Outcome, ServingDay
from grace_moe.adapt.simulate.scenarios import check_scenario, scenario_weights
from grace_moe.adapt.simulate.stream import StreamOptions
from grace_moe.errors import UsageError
from grace_moe.planning import equal_slots, plan
from grace_moe.topology import Topology
from grace_moe.trace import LoadProfile
from grace_moe.trace.load_profile import mixed_loads

MIX_PAIRS = 1_000_000
"""Pairs of a layer in a mix of domains. Not tuned: enough for shares to a part in ten thousand."""


def run_load_day(
    profiles: Sequence[LoadProfile],
    topology: Topology,
    scenario: str,
    policies: Sequence[str],
    options: DayOptions,
    *,
    top_k: int,
    on_step: Callable[[Policy], None] = lambda policy: None,
) -> Day:
    """Serve a day of the domains that the recordings are of, one policy after another.

    Recordings of one `dataset` are shards of one domain; without a name, each is a domain. The first domain is what the plans at the start
    are made on. Every second shard of a domain is seen by the policies, the others are measured on; of a single one both are drawn.

    Raises:
        UsageError: an unknown scenario or policy, or a single domain.
        TraceError: recordings of different models.
    """
    for name in policies:
        if name not in LOAD_POLICIES:
            raise UsageError(f"policy {name!r} is unknown; use one of {', '.join(LOAD_POLICIES)}")
    check_scenario(scenario)
    mixed_loads(list(profiles))  # of one model, or none of this means anything
    domains = _domains(profiles)
    if len(domains) < 2:
        raise UsageError(f"{profiles[0].source}: one domain; counts of a second are needed, imported with another --dataset")
    seen = [domain[::2] for domain in domains]
    measured = [domain[1::2] or domain for domain in domains]
    pools = LoadPool(seen), LoadPool(measured)
    known = [mixed_loads(shards) for shards in seen]
    slots = equal_slots(known[0], topology, redundancy=options.redundancy)
    adapt = AdaptOptions()
    adapt = replace(adapt, decision=replace(adapt.decision, prices=options.prices))
    start = plan(known[0], topology, "eplb", slots_per_device=slots)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in policies}
    for seed in range(options.seeds):
        setting = Setting(
            planned_on=known[0],
            topology=topology,
            slots=slots,
            plan=start,
            options=adapt,
            weights=scenario_weights(scenario, steps=options.stream.steps, domains=len(domains), seed=seed),
            domains=known,
            interval=options.interval,
            window=options.window,
            seed=seed,
        )
        migration = Migration(prices=options.prices, expert_bytes=options.expert_bytes)
        served = [LOAD_POLICIES[name](setting, top_k) for name in policies]
        days = _served(served, pools, setting, options.stream, migration, top_k=top_k, on_step=on_step)
        for name, outcome in zip(policies, days, strict=True):
            outcomes[name].append(outcome)
    alone = sum(len(domain) == 1 for domain in domains)
    note = f"{alone} of {len(domains)} domains have one recording: policies saw what they were measured on." if alone else ""
    return Day(scenario=scenario, outcomes=outcomes, by_counts=True, note=note)


def _served(
    policies: Sequence[LoadPolicy],
    pools: tuple[LoadPool, LoadPool],
    setting: Setting[LoadProfile],
    options: StreamOptions,
    migration: Migration,
    *,
    top_k: int,
    on_step: Callable[[Policy], None],
) -> list[Outcome]:
    """One day, of all policies side by side. They see loads of the first pool; steps cost what those of the second cost."""
    layers = [ServedLoads(policy.serving) for policy in policies]
    days = [ServingDay(policy, migration) for policy in policies]
    streams = (load_stream(pool, setting.weights, options, top_k, 2 * setting.seed + i) for i, pool in enumerate(pools))
    for sees, costs in zip(*streams, strict=True):
        for policy, served, day in zip(policies, layers, days, strict=True):
            served.serve(policy.serving)
            day.step(None, served.busiest(costs), tokens=options.tokens)
            policy.see_loads(sees)
            day.move()
            on_step(policy)
    return [day.outcome() for day in days]


def _domains(profiles: Sequence[LoadProfile]) -> list[list[LoadProfile]]:
    named: dict[str, list[LoadProfile]] = {}
    for profile in profiles:
        named.setdefault(profile.dataset or profile.source, []).append(profile)
    return list(named.values())


class LoadOurs(Following):
    """The adapter that serves where loads alone are seen."""

    def __init__(self, setting: Setting[LoadProfile], top_k: int) -> None:
        self._loads = LoadAdapter(setting.plan, setting.planned_on, top_k=top_k, options=setting.options, seed=setting.seed)
        super().__init__(self._loads)

    def see_loads(self, loads: Ints) -> None:
        """The adapter's monitor takes it in."""
        self._loads.monitor.observe(loads)


class LoadOracle:
    """Plans anew by EPLB for the shares to come, and moves for free."""

    stops, free = False, True

    def __init__(self, setting: Setting[LoadProfile]) -> None:
        self._setting, self._foresight = setting, Foresight(setting.weights)
        self.serving = setting.plan

    def see_loads(self, loads: Ints) -> None:
        """It knows already."""
        self._foresight.step()

    def wanted(self) -> Wanted | None:
        """A fresh plan on the mix of the next steps."""
        shares, setting = self._foresight.news(), self._setting
        if shares is None:
            return None
        parts = [domain.loads / domain.loads.sum(axis=1, keepdims=True) for domain in setting.domains]
        loads = np.round(np.tensordot(shares, parts, axes=1) * MIX_PAIRS).astype(np.int64)
        mix = replace(setting.planned_on, loads=loads)
        return Wanted(placement=plan(mix, setting.topology, "eplb", slots_per_device=setting.slots))


LOAD_POLICIES: dict[str, Callable[[Setting[LoadProfile], int], LoadPolicy]] = {
    "static": lambda setting, top_k: Static(setting),
    "eplb": lambda setting, top_k: Timer(setting),
    "loads": lambda setting, top_k: Loads(setting),
    "grace": LoadOurs,
    "oracle": lambda setting, top_k: LoadOracle(setting),
}
"""Name -> policy, of a setting and the experts that a token chooses."""
