"""What may be spent on moves: a share of what traffic costs, and what moves have saved."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.adapt import Adapter, AdaptOptions, DecisionOptions, Prices
from grace_moe.adapt.account import Account, cost_of_moves
from grace_moe.adapt.simulate.day import renamed
from grace_moe.placement import LayerPlacement, Placement
from grace_moe.planning import plan
from grace_moe.topology import Topology
from grace_moe.trace import synthetic_trace

PRICES = Prices(move=30.0, local_move=3.0)


def on(*devices):
    """A layer of two experts on these devices of two nodes."""
    return LayerPlacement(layer_id=0, devices_of_expert=tuple((device,) for device in devices), replica_weights=((1.0,),) * len(devices))


def placement(*layers):
    numbered = tuple(replace(layer, layer_id=number) for number, layer in enumerate(layers))
    return Placement(topology=Topology.parse("2x1"), num_experts=2, layers=numbered)


HERE, THERE = on(0, 1), on(1, 0)
START = placement(HERE, HERE)
MOVED = placement(THERE, HERE)


def test_it_earns_a_share_of_what_traffic_costs():
    account = Account(START, PRICES, share=0.01, most=1000.0)
    account.settle(10, 100.0, lambda index, layer: 1.0 + index)
    assert account.cost == pytest.approx(3.0 * 1000)
    assert account.balance == account.may_spend(START) == pytest.approx(30.0)


def test_what_moves_is_paid_for_and_saves_from_then_on():
    account = Account(START, PRICES, share=0.01, most=1000.0)
    costs = {HERE: 1.0, THERE: 0.6}

    def cost_of(index, layer):
        return costs[replace(layer, layer_id=0)]

    account.settle(10, 100.0, cost_of)
    assert account.may_spend(MOVED) == pytest.approx(20.0 - 60.0)  # both experts change nodes
    account.switch(MOVED, 12)
    assert account.spent == cost_of_moves(MOVED, START, PRICES) == 60.0
    account.settle(20, 100.0, cost_of)
    assert account.saved == pytest.approx(0.4 * 800)  # of eight steps
    assert account.balance == pytest.approx(0.01 * 4000 + 320 - 60)
    assert account.saved_share == pytest.approx((320 - 60) / 4000)
    account.settle(30, 100.0, None)  # nothing is known of these steps: as before
    assert account.saved == pytest.approx(0.4 * 1800)


def test_what_does_harm_is_taken_off():
    account = Account(MOVED, PRICES, share=0.0, most=1000.0)
    account.switch(START, 0)
    account.settle(10, 100.0, lambda index, layer: 1.0 if replace(layer, layer_id=0) == HERE else 0.6)
    assert account.saved == pytest.approx(-400.0)
    assert account.balance == pytest.approx(-460.0)


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(-1, 1), st.booleans()), max_size=12), st.floats(0, 0.1))
def test_who_spends_no_more_than_that_never_loses_more_than_the_share(stretches, share):
    account = Account(START, PRICES, share=share, most=500.0)
    step, serving = 0, START
    for steps, saves, wants in stretches:
        step += steps
        account.settle(step, 10.0, lambda index, layer, saves=saves: 2.0 - saves * (replace(layer, layer_id=0) == THERE))
        other = MOVED if serving is START else START
        if wants and account.may_spend(serving) >= cost_of_moves(other, serving, PRICES):
            account.switch(other, step)
            serving = other
            assert account.spent <= share * account.cost + account.saved + 1e-6
        assert account.balance <= 500.0


def test_an_adapter_that_can_not_pay_moves_nothing():
    trace = synthetic_trace(tokens=1600, layers=2, experts=16, top_k=2, requests=200, clusters=4, affinity=0.9, seed=1)
    start = plan(trace, Topology.parse("2x2"), slots_per_device=5, effort=0.1)
    moved = {}
    for harm in (0.0025, 1e-9):
        decision = DecisionOptions(prices=Prices(move=20.0, local_move=2.0), effort=0.1)
        adapter = Adapter(start, trace, options=AdaptOptions(harm=harm, decision=decision))
        random = np.random.default_rng(0)
        for step in range(60):
            of = trace if step < 30 else renamed(trace)
            rows = [np.flatnonzero(of.requests == request) for request in random.integers(200, size=16)]
            adapter.monitor.observe(
                of.topk_ids[np.concatenate(rows)], np.repeat(random.integers(1 << 30, size=16), [len(row) for row in rows])
            )
            adapter.look()  # nothing is carried out, so nothing is saved either
        moved[harm] = sum(look.decision.moved for look in adapter.looks)
        assert adapter.account.cost > 0
    assert moved[0.0025] > moved[1e-9] == 0
