"""When the adapter looks, and what it makes of it: decisions themselves are tested in test_decide."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from grace_moe.adapt import Adapter, AdaptOptions, DecisionOptions, Prices, decide
from grace_moe.adapt.episodes import BaseAdapter
from grace_moe.adapt.review import Review
from grace_moe.adapt.simulate.day import renamed
from grace_moe.errors import UsageError
from grace_moe.placement import difference
from grace_moe.planning import plan
from grace_moe.topology import Topology
from grace_moe.trace import synthetic_trace
from grace_moe.trace.change import Change

TRACE = synthetic_trace(tokens=1600, layers=2, experts=16, top_k=2, requests=200, clusters=4, affinity=0.9, seed=1)
PLAN = plan(TRACE, Topology.parse("2x2"), slots_per_device=5, effort=0.1)
OPTIONS = AdaptOptions(decision=DecisionOptions(prices=Prices(move=1.0, local_move=0.1), effort=0.1))


def serve(adapter, trace, steps, seed):
    """Steps of whole requests, each a request of its own; the step of every decision."""
    random = np.random.default_rng(seed)
    decided = []
    for _ in range(steps):
        rows = [np.flatnonzero(trace.requests == request) for request in random.integers(200, size=16)]
        numbers = np.repeat(random.integers(1 << 30, size=16), [len(row) for row in rows])
        adapter.monitor.observe(trace.topk_ids[np.concatenate(rows)], numbers)
        if adapter.look() is not None:
            decided.append(adapter.monitor.step)
    return decided


def test_traffic_as_planned_for_is_not_decided_on():
    adapter = Adapter(PLAN, TRACE, options=OPTIONS)
    assert serve(adapter, TRACE, 60, 0) == []
    assert adapter.looks == []


def test_after_a_change_looks_come_ever_later():
    adapter = Adapter(PLAN, TRACE, options=OPTIONS)
    serve(adapter, TRACE, 30, 0)
    steps = serve(adapter, renamed(TRACE), 180, 1)
    assert 30 < steps[0] <= 40
    assert np.diff(steps).tolist() == [5, 5, 10, 15, 20, 30, 45]  # by half of the steps since the change, in checks of five
    assert [look.step for look in adapter.looks] == steps
    first = adapter.looks[0]
    assert first.change.chance < OPTIONS.false_alarms * OPTIONS.check_every
    assert any(look.decision.placement is not None for look in adapter.looks)


@pytest.mark.parametrize("wrong", [{"check_every": 0}, {"recent_steps": 0}, {"false_alarms": 1.0}, {"persistence": 0.0}, {"harm": -0.1}])
def test_what_is_out_of_range_is_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        AdaptOptions(**wrong)


def test_layers_that_a_decision_has_no_room_for_come_at_the_next_checks():
    cheap = DecisionOptions(prices=Prices(move=1.0, local_move=0.1), effort=0.1, work=1, budget=1.0)
    adapter = Adapter(PLAN, TRACE, options=AdaptOptions(decision=cheap))
    serve(adapter, TRACE, 30, 0)
    steps = serve(adapter, renamed(TRACE), 100, 1)
    assert np.diff(steps).tolist()[:5] == [5, 5, 5, 10, 5]  # one of two layers each: a look ends at its second decision
    first, second = (look.decision for look in adapter.looks[:2])
    assert {first.considered, second.considered} == {(0,), (1,)}
    changed = adapter.looks[0].change.by_layer
    assert changed[first.considered[0]] == max(changed)
    pairs = [(a.decision, b.decision) for a, b in zip(adapter.looks[::2], adapter.looks[1::2], strict=False)]
    both = [(a, b) for a, b in pairs if a.placement is not None and b.placement is not None]
    assert both
    assert all(b.placement.layers[a.considered[0]] == a.placement.layers[a.considered[0]] for a, b in both)


def test_the_budget_is_for_all_decisions_after_a_change():
    options = replace(OPTIONS, decision=replace(OPTIONS.decision, budget=0.1, effort=0.2))
    adapter = Adapter(PLAN, TRACE, options=options)
    serve(adapter, TRACE, 30, 0)
    random, moved = np.random.default_rng(1), 0
    other = renamed(TRACE)
    for _ in range(100):
        rows = [np.flatnonzero(other.requests == request) for request in random.integers(200, size=16)]
        numbers = np.repeat(random.integers(1 << 30, size=16), [len(row) for row in rows])
        adapter.monitor.observe(other.topk_ids[np.concatenate(rows)], numbers)
        decision = adapter.look()
        if decision is not None and decision.placement is not None:
            moved += difference(decision.placement, adapter.serving).moved
            adapter.serving = decision.placement
    assert len(adapter.looks) >= 3
    assert moved <= 0.1 * int(PLAN.slots_per_device().sum())


def test_what_moved_is_measured_and_goes_back_where_it_does_harm():
    """Every decision is carried out at once; the traffic that it was made for is gone soon after."""

    class Obeyed(Adapter):
        def look(self):
            decision = super().look()
            if decision is not None and decision.placement is not None:
                self.serving = decision.placement
            return decision

    adapter = Obeyed(PLAN, TRACE, options=replace(OPTIONS, decision=replace(OPTIONS.decision, budget=1.0)))
    serve(adapter, TRACE, 30, 0)
    serve(adapter, renamed(TRACE), 60, 1)
    measured = [look.measured for look in adapter.looks if look.measured is not None]
    assert measured
    assert min(measured) > 0
    before = len(adapter.looks)
    serve(adapter, TRACE, 90, 2)
    assert sum("go back" in look.decision.reason for look in adapter.looks[before:]) == 1


class Scripted(BaseAdapter):
    """Is told when traffic differs, and what a move has saved; all other decisions are to stay."""

    looks_after_change, growth, tells_between_looks = 2, 2.0, False

    def __init__(self, changed, saves):
        super().__init__(PLAN, options=OPTIONS)
        self.monitor = SimpleNamespace(step=0, tokens_per_step=64.0)
        self.changed, self.saves = changed, saves
        self.moving = decide(PLAN, renamed(TRACE), replace(OPTIONS.decision, budget=1.0))
        self.moved_at = []

    def run(self, steps):
        while self.monitor.step < steps:
            self.monitor.step += 1
            decision = self.look()
            if decision is not None and decision.placement is not None:
                self.moved_at.append(self.monitor.step)

    def _change(self, step):
        chance = 0.0 if any(step in steps for steps in self.changed) else 1.0
        return Change(distance=1.0, by_layer=(1.0, 1.0), expected=0.5, chance=chance, compared=(100, 100))

    def _decide(self, first_step, options, order):
        self.changed = [steps for steps in self.changed if self.monitor.step not in steps]  # later traffic is like what was decided on
        return self.moving if self._episode.undecided else replace(self.moving, placement=None)

    def _affordable(self, began, step, target):
        return math.inf

    def _review(self, former, since, options):
        return Review(measured=self.saves, back=None)


def test_a_decision_that_did_harm_doubles_the_wait_after_the_next_change():
    adapter = Scripted([range(100, 140), range(300, 340), range(500, 505), range(700, 740)], saves=-1.0)
    adapter.run(800)
    # told at 100, and ten steps as recent; waits of 20 and 40 steps from there; 500 to 505 is over by then, and told harm no more
    assert adapter.moved_at == [100, 310, 730]
    assert [look.waits for look in adapter.looks if look.decision.placement is not None] == [10, 30, 70]


def test_a_decision_that_did_good_halves_the_wait_again():
    adapter = Scripted([range(100, 140), range(600, 640), range(1100, 1140)], saves=-1.0)
    adapter.run(590)
    adapter.saves = 1.0
    adapter.run(1200)
    assert adapter.moved_at == [100, 610, 1100]


def test_the_wait_does_not_grow_for_ever():
    adapter = Scripted([range(1000 * change, 1000 * change + 400) for change in range(1, 9)], saves=-1.0)
    adapter.run(9000)
    waits = [step % 1000 for step in adapter.moved_at]
    assert waits == [0, 10, 30, 70, 150, 150, 150, 150]


def test_what_can_not_be_followed_is_refused():
    with pytest.raises(UsageError, match="up to 64"):
        Adapter(plan(TRACE, Topology.parse("65x1"), "round_robin"), TRACE)
