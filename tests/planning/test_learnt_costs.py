"""Costs that foretell a whole request from its first tokens, by hand; and what a search counts of tokens that may be placed or not."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.choice import FIRST_TOKENS
from grace_moe.placement import LayerPlacement, even_weights
from grace_moe.planning.grace.layer_placement import placed_or_not
from grace_moe.planning.grace.learnt_costs import evening, with_learnt_costs
from grace_moe.planning.grace.source_costs import with_source_costs
from grace_moe.planning.grace.uncertainty import load_shares
from tests.planning.test_constants import problem_of

REST = 3 * FIRST_TOKENS
DEVICES = ((1,), (0,), (0,), (1,))
LAYER = LayerPlacement(layer_id=0, devices_of_expert=DEVICES, replica_weights=even_weights(DEVICES))


def turning(first_kinds, second_kinds):
    """Requests whose first window is not of the node that the rest is of: expert 0, then 1; and expert 2, then 3."""
    one, other = [[0]] * FIRST_TOKENS + [[1]] * REST, [[2]] * FIRST_TOKENS + [[3]] * REST
    ids = one * first_kinds + other * second_kinds
    return problem_of(ids, 4, np.repeat(np.arange(first_kinds + second_kinds), FIRST_TOKENS + REST))[0]


def test_first_tokens_tell_where_the_rest_is_cheap():
    """Expert 0 is on node 1. But the rest of its requests is of expert 1, on node 0: there three quarters of them are free."""
    problem = turning(4, 4)
    means = np.array(with_source_costs(problem, LAYER).source_costs)
    learnt = np.array(with_learnt_costs([problem], [LAYER])[0].source_costs)
    assert means.argmin(axis=1).tolist() == [1, 0, 0, 1]
    assert learnt.argmin(axis=1).tolist() == [0, 0, 1, 1]


def test_as_many_windows_are_cheapest_from_each_node():
    """Six windows like node 0 better, by 1 to 6: after evening, the first three do so no more."""
    costs = np.stack([np.zeros(6), np.arange(1.0, 7.0)], axis=1)
    assert (costs + evening(costs)).argmin(axis=1).tolist() == [1, 1, 1, 0, 0, 0]


@given(windows=st.integers(4, 60), nodes=st.integers(1, 4), tilt=st.floats(-3, 3), seed=st.integers(0, 99))
def test_evening_is_near_even_whatever_the_tilt(windows, nodes, tilt, seed):
    costs = np.random.default_rng(seed).random((windows, nodes))
    costs[:, 0] += tilt
    counts = np.bincount((costs + evening(costs)).argmin(axis=1), minlength=nodes)
    assert counts.max() - windows / nodes <= 2 + windows / 20


def test_what_nothing_is_known_of_has_no_costs():
    """No token has any choice: all costs are 0, and nothing is divided by 0."""
    problem = problem_of([[-1]] * 4, 4, [0, 0, 1, 1])[0]
    assert with_learnt_costs([problem], [LAYER])[0].source_costs == ((0.0, 0.0),) * 4


def test_every_token_counts_as_placed_and_as_not():
    ids, pins = placed_or_not(np.array([[0, 1], [2, -1]]), np.array([1, 0]))
    assert ids.tolist() == [[0, 1], [2, -1]] * 2
    assert pins.tolist() == [1, 0, -1, -1]
    share, _ = load_shares(ids, np.arange(4), 3)
    assert share.tolist() == load_shares(ids[:2], np.arange(2), 3)[0].tolist()
