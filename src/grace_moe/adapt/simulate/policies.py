"""Policies of placement, as the simulation asks them: what they see of a step, and where they want the experts to be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from grace_moe.adapt.adapter import Adapter
from grace_moe.adapt.by_counts.levelling import shares_of
from grace_moe.adapt.episodes import BaseAdapter
from grace_moe.adapt.options import AdaptOptions
from grace_moe.placement import Placement
from grace_moe.planning import plan
from grace_moe.topology import Topology
from grace_moe.trace import LoadProfile, RoutingTrace, expert_loads

Ints = npt.NDArray[np.int64]
Recording = TypeVar("Recording", RoutingTrace, LoadProfile)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a policy wants to serve from now on."""

    placement: Placement
    first: Sequence[int] = ()
    """Layers that go first, by index."""


class Policy(Protocol):
    """Decides where experts should be."""

    serving: Placement
    """What serves; the simulation sets it as layers have moved."""
    stops: bool
    """Whether serving stops while experts move."""
    free: bool
    """Whether its moves cost nothing: an oracle's."""

    def wanted(self) -> Wanted | None:
        """A placement to move to from now on; None = go on as before."""


class TokenPolicy(Policy, Protocol):
    """One that sees tokens."""

    def see(self, topk_ids: npt.NDArray[np.integer], requests: Ints) -> None:
        """A step's choices `[T, L, k]` and the requests of its tokens `[T]`."""


class LoadPolicy(Policy, Protocol):
    """One that sees loads."""

    def see_loads(self, loads: Ints) -> None:
        """A step's pairs of each expert, `[L, E]`."""


@dataclass(frozen=True, kw_only=True)
class Setting(Generic[Recording]):
    """What every policy starts from."""

    planned_on: Recording
    topology: Topology
    slots: int
    """Of each device."""
    plan: Placement
    """Made on `planned_on`: ours, or EPLB's where counts are all that is known."""
    options: AdaptOptions
    weights: npt.NDArray[np.float64]
    """`[steps, domains]` shares to come: for the oracle alone."""
    domains: list[Recording]
    """What can be seen of each domain: for the oracle alone."""
    interval: int
    """Steps between two re-plans of the policies on a timer."""
    window: int
    """Steps whose loads they go by."""
    seed: int


class Static:
    """The plan at the start, for ever."""

    stops = free = False

    def __init__(self, setting: Setting[Any]) -> None:
        self.serving = setting.plan

    def see(self, topk_ids: npt.NDArray[np.integer], requests: Ints) -> None:
        """Nothing is kept."""

    def see_loads(self, loads: Ints) -> None:
        """Nothing is kept."""

    def wanted(self) -> Wanted | None:
        """Never another."""
        return None


class Timer:
    """EPLB every so many steps on the loads of the last ones, as engines run it: serving stops while experts move."""

    stops, free = True, False

    def __init__(self, setting: Setting[Any]) -> None:
        self._setting = setting
        self._loads: list[Ints] = []
        self._step = 0
        self.serving = plan(setting.planned_on, setting.topology, "eplb", slots_per_device=setting.slots)

    def see(self, topk_ids: npt.NDArray[np.integer], requests: Ints) -> None:
        """Keeps the step's loads."""
        self.see_loads(expert_loads(_without_requests(self._setting.planned_on, topk_ids)))

    def see_loads(self, loads: Ints) -> None:
        """Keeps them, as many steps as the window has."""
        self._loads = [*self._loads, loads][-self._setting.window :]
        self._step += 1

    def wanted(self) -> Wanted | None:
        """EPLB's placement on the window's loads, whenever the interval has passed."""
        if self._step % self._setting.interval:
            return None
        setting, loads = self._setting, np.sum(self._loads, axis=0)
        counts = LoadProfile(loads=loads, layer_ids=setting.planned_on.layer_ids, model=setting.planned_on.model)
        return Wanted(placement=plan(counts, setting.topology, "eplb", slots_per_device=setting.slots))


class Loads(Timer):
    """EPLB on a timer, without a stop, and only where it evens the load out by a twentieth: what can be had from loads alone."""

    stops = False
    LEAST = 0.05
    """Not tuned."""

    def wanted(self) -> Wanted | None:
        """EPLB's placement where the window's loads would be so much more even."""
        new = super().wanted()
        if new is None:
            return None
        loads = np.sum(self._loads, axis=0)
        return new if _peak(self.serving, loads) - _peak(new.placement, loads) > self.LEAST else None


class Following:
    """The adapter that serves in the runtime and in engines, whatever it sees."""

    stops = free = False

    def __init__(self, adapter: BaseAdapter) -> None:
        self.adapter = adapter

    @property
    def serving(self) -> Placement:
        """What the adapter takes to be serving."""
        return self.adapter.serving

    @serving.setter
    def serving(self, placement: Placement) -> None:
        self.adapter.serving = placement

    def wanted(self) -> Wanted | None:
        """The adapter's decision."""
        decision = self.adapter.look()
        if decision is None or decision.placement is None:
            return None
        return Wanted(placement=decision.placement, first=decision.first)


class Ours(Following):
    """The adapter that sees tokens."""

    def __init__(self, setting: Setting[RoutingTrace]) -> None:
        self._tokens = Adapter(setting.plan, setting.planned_on, options=setting.options, seed=setting.seed)
        super().__init__(self._tokens)

    def see(self, topk_ids: npt.NDArray[np.integer], requests: Ints) -> None:
        """The adapter's monitor takes it in."""
        self._tokens.monitor.observe(topk_ids, requests)


class Foresight:
    """Knows the shares to come, and tells them wherever they have changed by a fifth."""

    CHANGE = 0.2
    """Not tuned."""
    STEPS = 10
    """That it looks ahead. Not tuned."""

    def __init__(self, weights: npt.NDArray[np.float64]) -> None:
        """`weights`: `[steps, domains]`."""
        self._weights, self._step = weights, 0
        self._told = np.full(weights.shape[1], np.inf)

    def step(self) -> None:
        """A step has passed."""
        self._step += 1

    def news(self) -> npt.NDArray[np.float64] | None:
        """`[domains]` shares of the next steps; None where they are as told, or the day ends."""
        ahead = self._weights[self._step : self._step + self.STEPS]
        if not len(ahead) or np.abs(ahead.mean(axis=0) - self._told).sum() < self.CHANGE:
            return None
        self._told = ahead.mean(axis=0)
        return self._told


class Oracle:
    """Plans anew from nothing for the shares to come, and moves for free."""

    stops, free = False, True

    def __init__(self, setting: Setting[RoutingTrace]) -> None:
        self._setting, self._foresight = setting, Foresight(setting.weights)
        self._plans: dict[tuple[float, ...], Placement] = {}
        self.serving = setting.plan

    def see(self, topk_ids: npt.NDArray[np.integer], requests: Ints) -> None:
        """It knows already."""
        self._foresight.step()

    def wanted(self) -> Wanted | None:
        """A fresh plan on the mix of the next steps."""
        shares = self._foresight.news()
        if shares is None:
            return None
        key = tuple(np.round(shares, 1))
        if key not in self._plans:
            setting = self._setting
            effort = setting.options.decision.effort
            self._plans[key] = plan(self._mixed(shares), setting.topology, slots_per_device=setting.slots, effort=effort)
        return Wanted(placement=self._plans[key])

    def _mixed(self, shares: npt.NDArray[np.float64]) -> RoutingTrace:
        """Requests of the domains, as many as their shares say; one at least."""
        random = np.random.default_rng([self._setting.seed, 3])
        ids, requests, count = [], [], 0
        total = min(trace.num_tokens for trace in self._setting.domains)
        for trace, share in zip(self._setting.domains, shares, strict=True):
            tokens = 0
            for request in random.permutation(np.unique(trace.requests)):
                rows = np.flatnonzero(trace.requests == request)
                if tokens + len(rows) / 2 > share * total:
                    break
                ids.append(trace.topk_ids[rows])
                requests.append(np.full(len(rows), count))
                count, tokens = count + 1, tokens + len(rows)
        if not ids:  # every request is longer than its domain's share
            domain = self._setting.domains[int(np.argmax(shares))]
            ids.append(domain.topk_ids[domain.requests == domain.requests[0]])
            requests.append(np.zeros(len(ids[0])))
        mixed = _without_requests(self._setting.planned_on, np.concatenate(ids))
        return replace(mixed, request_ids=np.concatenate(requests).astype(np.int32))


POLICIES: dict[str, Callable[[Setting[RoutingTrace]], TokenPolicy]] = {
    "static": Static,
    "eplb": Timer,
    "loads": Loads,
    "grace": Ours,
    "oracle": Oracle,
}
"""Name -> policy."""


def _without_requests(like: RoutingTrace, topk_ids: npt.NDArray[Any]) -> RoutingTrace:
    """Other choices `[T, L, k]` of the same model."""
    return replace(like, topk_ids=topk_ids, request_ids=None, phase=None, topk_weights=None, token_ids=None)


def _peak(placement: Placement, loads: Ints) -> float:
    """Busiest device over the mean, mean over layers, where experts' loads divide by the replicas' weights."""
    peaks = []
    for layer, load in zip(placement.layers, loads, strict=True):
        device = load @ shares_of(layer, placement.topology.num_devices) / placement.topology.relative_speed
        peaks.append(device.max() / max(device.mean(), 1e-12))
    return float(np.mean(peaks))
