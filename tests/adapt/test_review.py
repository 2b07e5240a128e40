from dataclasses import replace

import pytest

from grace_moe.adapt import DecisionOptions, Prices
from grace_moe.adapt.review import review
from grace_moe.adapt.simulate.day import renamed
from grace_moe.placement import difference
from grace_moe.planning import plan
from grace_moe.topology import Topology
from grace_moe.trace import synthetic_trace

TRACE = synthetic_trace(tokens=1600, layers=3, experts=16, top_k=2, requests=200, clusters=4, affinity=0.9, seed=1)
OURS, OTHERS = (plan(trace, Topology.parse("2x2"), slots_per_device=5, effort=0.1) for trace in (TRACE, renamed(TRACE)))
CHEAP = DecisionOptions(prices=Prices(move=1.0, local_move=0.1))


def test_what_does_harm_goes_back():
    found = review(OURS, OTHERS, TRACE, CHEAP)
    assert found is not None
    assert found.measured < 0
    assert found.back is not None
    moves = difference(found.back.placement, OTHERS)
    assert (found.back.moved, found.back.from_other_nodes) == (moves.moved, int(moves.from_other_nodes.sum()))
    for index, layer in enumerate(found.back.placement.layers):
        assert layer == (OURS if index in found.back.considered else OTHERS).layers[index]
    assert found.back.gain.mean >= found.back.gain.low > found.back.cost > 0


def test_what_does_good_stays():
    found = review(OTHERS, OURS, TRACE, CHEAP)
    assert found is not None
    assert found.measured > 0
    assert found.back is None


def test_going_back_must_pay():
    found = review(OURS, OTHERS, TRACE, replace(CHEAP, prices=Prices(move=1e9, local_move=1e9)))
    assert found is not None
    assert found.measured < 0
    assert found.back is None


@pytest.mark.parametrize(("former", "requests"), [(OTHERS, 200), (OURS, 7)])
def test_nothing_is_told_where_nothing_moved_or_few_requests_came_in(former, requests):
    assert review(former, OTHERS, TRACE.select(TRACE.requests < requests), CHEAP) is None
