"""What the constants of planning are for: small cases, each of which falls the other way where its constant does."""

from dataclasses import replace

import numpy as np
import pytest

from grace_moe import RoutingTrace, Topology
from grace_moe.placement import LayerPlacement
from grace_moe.planning.grace.candidates import Candidate
from grace_moe.planning.grace.canonical_names import canonical_names, device_order
from grace_moe.planning.grace.layer_placement import place_layer
from grace_moe.planning.grace.options import GraceOptions
from grace_moe.planning.grace.problem import layer_problems
from grace_moe.planning.grace.tuning import balance_goal
from grace_moe.planning.task import PlanningTask

OPTIONS = GraceOptions(
    move_price=0.0,
    price=4.0,
    tolerance=1.015,
    request_placement=False,
    decode="tokens",
    decode_copies=0.05,
    decode_load=0.1,
    decode_batch=64,
    effort=0.1,
    threads=1,
)
LAYER = LayerPlacement(layer_id=0, devices_of_expert=((0,),), replica_weights=((1.0,),))


def problem_of(ids, experts, requests=None, shape="2x1", **limits):
    """The problem of a layer, experts by the names given: canonical ones are the same where experts fire in this order."""
    trace = RoutingTrace(
        topk_ids=np.array(ids, np.int16)[:, None],
        num_experts=experts,
        layer_ids=(0,),
        request_ids=None if requests is None else np.array(requests, np.int32),
    )
    task = PlanningTask(recording=trace, topology=Topology.parse(shape), **(limits or {"redundancy": 1}))
    names = canonical_names(trace.topk_ids, experts, device_order(task.topology))
    (problem,) = layer_problems(task, OPTIONS, names)
    return problem, names[0].experts


def nodes_of(case):
    """What each node holds, by the trace's names."""
    problem, names = case
    _, copies = place_layer(problem, 1, None)
    return {frozenset(names[np.flatnonzero(row)].tolist()) for row in copies}


TOPICS = {frozenset((0, 1, 2)), frozenset((3, 4, 5))}


def lopsided_topics(requests):
    """Pairs of 0, 1, 2 are 57% of the tokens, pairs of 3, 4, 5 the others. Topics on nodes of their own: half a copy a token, squared
    imbalance 0.039. One expert of each exchanged: 0.83 copies, 0.004. So 0.33 copies buy 0.035: right at a price of 64, not of 4."""
    generator = np.random.default_rng(0)
    topic = generator.random(3000) >= 0.57
    pairs = np.array([(0, 1), (0, 2), (1, 2)])[generator.integers(0, 3, 3000)]
    return problem_of(pairs + 3 * topic[:, None], 6, requests)


def test_where_requests_are_unknown_balance_is_worth_more_copies():
    assert nodes_of(lopsided_topics(np.random.default_rng(1).integers(0, 300, 3000))) == TOPICS
    assert nodes_of(lopsided_topics(None)) != TOPICS


def one_topic_a_request(requests):
    """Each request has one of two topics of two experts. Topics on nodes of their own cost half a copy a token less, and the variance of a
    node's share is 3.6 / (8 requests) instead of 0.4 / (8 requests)."""
    pairs = np.array([(0, 1), (2, 3)] * (requests // 2))
    return problem_of(np.repeat(pairs, 40, axis=0), 4, np.repeat(np.arange(requests), 40))


def test_topics_of_few_requests_are_spread_over_nodes_and_those_of_many_kept_together():
    """Priced: 4 * 3 * 2 * 3.2 / (8 requests) / 0.25 copies, which is 0.5 at 77 requests; unweighted it would be at 26."""
    together = {frozenset((0, 1)), frozenset((2, 3))}
    assert nodes_of(one_topic_a_request(50)) != together
    assert nodes_of(one_topic_a_request(120)) == together


def test_an_expert_that_is_more_than_a_devices_load_gets_the_spare_copy():
    """Two nodes of four slots, seven experts. A copy of 3 on the other node would save 0.05 copies a token, one of 0 nothing. But expert 0 is
    1.2 times a device's mean load, 0.4 above the cap: 0.16."""
    pairs, tokens = [(0, 1), (0, 2), (0, 3), (4, 5), (4, 6), (3, 4)], [80, 80, 80, 60, 60, 40]
    problem, names = problem_of(np.repeat(pairs, tokens, axis=0), 7, np.arange(400) % 40, "2x2", slots_per_device=2)
    _, copies = place_layer(replace(problem, imbalance_price=0.0), 1, None)
    assert names[copies.sum(axis=0) == 2].tolist() == [0]


@pytest.mark.parametrize(("requests", "met"), [([0, 0, 1, 1] * 8, True), (None, False)])
def test_days_may_differ_less_where_requests_are_unknown(requests, met):
    """Peaks of 0.98 and 1.02: half a standard deviation of 0.02 over the mean is within 1.015, two are not."""
    problem, _ = problem_of([[0, 1]] * 32, 2, requests)
    floor = Candidate(layer=LAYER, origin="eplb", peaks=np.ones(64), traffic=1.0)
    days = replace(floor, origin="search", peaks=np.tile([0.98, 1.02], 32), traffic=0.5)
    goal = balance_goal([problem], [floor], 1.015)
    assert goal.met_by(0, days) is met
    assert (goal.choose([[days]]) is not None) is met
    assert not goal.met_by(0, replace(days, peaks=days.peaks + 0.006))
