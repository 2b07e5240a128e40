from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest

from grace_moe.adapt import DecisionOptions, Prices, decide
from grace_moe.adapt.candidates import Judge
from grace_moe.adapt.judge import cost_per_token
from grace_moe.adapt.request_costs import request_costs
from grace_moe.adapt.simulate.day import renamed
from grace_moe.errors import TraceError, UsageError
from grace_moe.placement import LayerPlacement, difference
from grace_moe.planning import plan
from grace_moe.topology import Topology
from grace_moe.trace import synthetic_trace

TOPOLOGY = Topology.parse("2x2")
TRACE = synthetic_trace(tokens=1600, layers=2, experts=16, top_k=2, requests=160, clusters=4, affinity=0.9, seed=1)
PLAN = plan(TRACE, TOPOLOGY, slots_per_device=5, effort=0.1)
CHEAP = DecisionOptions(prices=Prices(move=1.0, local_move=0.1), effort=0.2, budget=1.0)


def test_costs_of_requests_by_hand():
    """Experts 0 and 1 on device 0, 2 and 3 on device 1 of another node; request 0 comes in on device 0, request 1 on device 1."""
    layer = LayerPlacement(layer_id=0, devices_of_expert=((0,), (0,), (1,), (1,)), replica_weights=((1.0,),) * 4)
    ids = np.array([[0, 1], [0, 2], [2, 3], [0, -1]])
    found = request_costs(layer, Topology.parse("2x1"), "joint", ids, np.array([0, 0, 1, 1]))
    assert found.tokens.tolist() == [2, 2]
    assert found.copies.tolist() == [1, 1]  # tokens (0, 2) and (0,)
    assert found.pairs.tolist() == [[3, 1], [1, 2]]
    cost = cost_per_token(found, Prices(imbalance=2.0))
    assert cost.tolist() == pytest.approx([2 / 4 + 2.0 * (4 / 3.5 - 1)])


def test_traffic_as_planned_moves_nothing_that_costs():
    decision = decide(PLAN, TRACE, DecisionOptions(effort=0.2))
    assert decision.moved == 0


def test_other_traffic_moves_what_pays():
    other = renamed(TRACE)
    decision = decide(PLAN, other, CHEAP)
    assert decision.placement is not None
    assert decision.gain.mean >= decision.gain.low > decision.cost
    moves = difference(decision.placement, PLAN)
    assert (decision.moved, decision.from_other_nodes) == (moves.moved, int(moves.from_other_nodes.sum()))
    assert decide(PLAN, other, CHEAP) == decision
    dear = decide(PLAN, other, replace(CHEAP, prices=Prices(move=1e12, local_move=1e12)))
    assert dear.moved == 0


def test_what_surely_saves_too_little_of_all_costs_is_not_done(monkeypatch):
    found = decide(PLAN, renamed(TRACE), CHEAP)
    cost = sum(Judge(PLAN, renamed(TRACE).split_requests(0)[1], CHEAP.prices).served_cost(index) for index in range(2)) / 2
    for share, moves in ((found.gain.low / cost - 1e-6, True), (found.gain.low / cost + 1e-6, False)):
        monkeypatch.setattr(import_module("grace_moe.adapt.decide"), "LEAST", share)
        decision = decide(PLAN, renamed(TRACE), CHEAP)
        assert (decision.placement is not None) == moves
    assert decision.gain_left == pytest.approx(found.gain_left + found.gain.mean)
    assert decision.reason.endswith("% of all costs")


@pytest.mark.parametrize("budget", [0.0, 0.05, 0.3])
def test_the_budget_holds(budget):
    decision = decide(PLAN, renamed(TRACE), replace(CHEAP, budget=budget))
    assert decision.moved <= budget * int(PLAN.slots_per_device().sum())


def test_what_can_not_be_decided_is_refused():
    with pytest.raises(TraceError, match="one request"):
        decide(PLAN, TRACE.select(TRACE.requests == 3), CHEAP)
    with pytest.raises(UsageError, match="horizon"):
        DecisionOptions(horizon=0.0)
    with pytest.raises(UsageError, match="prices"):
        Prices(move=-1.0)


def test_a_budget_too_small_for_a_whole_layer_takes_its_best_moves():
    other = renamed(TRACE)
    whole = decide(PLAN, other, CHEAP)
    assert whole.moved > 4
    copies = int(PLAN.slots_per_device().sum())
    part = decide(PLAN, other, replace(CHEAP, budget=4.5 / copies))
    assert part.placement is not None
    assert 0 < part.moved <= 4
    assert part.gain.low > part.cost
