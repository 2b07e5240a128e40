"""Whether the halves of a trace are of the same traffic."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from grace_moe import RoutingTrace, Topology, compare
from grace_moe.cost.step import Setting
from grace_moe.evaluation import diagnose, parts_of
from grace_moe.evaluation.halves import _chance_of_lengths, unlike_halves

EXPERTS = 16


def trace_of(lengths, tastes, seed=0):
    """A trace of requests of these lengths, whose tokens choose 2 experts by their request's `[EXPERTS]` taste."""
    random = np.random.default_rng(seed)
    requests = np.repeat(np.arange(len(lengths)), lengths)
    liked = np.asarray(tastes) + random.gumbel(size=(len(lengths), EXPERTS))
    drawn = liked[requests] + random.gumbel(size=(len(requests), EXPERTS))
    ids = np.argsort(-drawn, axis=1)[:, None, :2].astype(np.int16)
    return RoutingTrace(topk_ids=ids, num_experts=EXPERTS, layer_ids=(0,), request_ids=requests.astype(np.int32), source="t.safetensors")


def test_long_and_short_requests_that_take_turns_are_told():
    (note,) = unlike_halves(*trace_of([4, 9] * 20, np.zeros(EXPERTS)).split_requests())
    assert note.startswith("t.safetensors: every second request is other traffic: requests planned on have 4 tokens on average, ")
    assert "those measured on 9 (by chance in one trace of 1,000)" in note
    assert "--eval" in note
    assert "--split-seed" in note


def test_topics_that_take_turns_are_told_where_lengths_are_alike():
    topics = np.zeros((60, EXPERTS))
    topics[::2, :4] = topics[1::2, 4:8] = 3.0
    (note,) = unlike_halves(*trace_of([5] * 60, topics).split_requests())
    assert "choose other experts" in note


def test_halves_at_random_of_the_same_traces_are_alike():
    topics = np.zeros((60, EXPERTS))
    topics[::2, :4] = topics[1::2, 4:8] = 3.0
    trace = trace_of([4, 9] * 30, topics)
    told = [unlike_halves(*trace.split_requests(seed)) for seed in range(200)]
    assert sum(map(bool, told)) <= 3  # 0.2 are expected; more than 3 come once in 20,000
    assert unlike_halves(*trace.split_requests())


@pytest.mark.parametrize("requests", [14, 16])
def test_few_requests_tell_nothing(requests):
    assert bool(unlike_halves(*trace_of([4, 9] * (requests // 2), np.zeros(EXPERTS)).split_requests())) == (requests == 16)


def test_tokens_whose_requests_are_unknown_tell_nothing():
    """Neighbours are alike, so that tokens are no independent requests."""
    topics = np.zeros((60, EXPERTS))
    topics[::2, :4] = topics[1::2, 4:8] = 9.0
    assert unlike_halves(*trace_of([1] * 60, topics).split_requests()) == ()


@given(st.lists(st.integers(1, 9), min_size=8, max_size=30), st.lists(st.integers(1, 9), min_size=8, max_size=30))
def test_lengths_are_compared_as_mann_and_whitney_do(one, other):
    ours = _chance_of_lengths(np.array(one), np.array(other))
    if len({*one, *other}) == 1:
        assert ours == 1.0
    else:
        assert ours == pytest.approx(mannwhitneyu(one, other, method="asymptotic").pvalue)


def test_a_trace_to_measure_on_has_no_halves():
    trace = trace_of([4, 9] * 20, np.zeros(EXPERTS))
    planned_on, measured_on, notes = parts_of(trace, trace)
    assert planned_on is measured_on is trace
    assert notes == ()
    assert parts_of(trace, None)[2] != ()


def test_compare_and_diagnose_note_it_and_their_json_has_it():
    trace, topology = trace_of([4, 9] * 20, np.zeros(EXPERTS)), Topology.parse("2x2:h100-400g")
    (note,) = unlike_halves(*trace.split_requests())
    comparison = compare(trace, topology, methods=("linear",))
    assert comparison.notes == (note,)
    assert comparison.to_dict()["notes"] == [note]
    assert compare(trace, topology, measure_on=trace, methods=("linear",)).notes == ()
    found = diagnose(trace, topology, Setting(), redundancy=1.0)
    assert found.to_dict()["notes"] == [note]
    assert "notes" not in diagnose(trace, topology, Setting(), redundancy=1.0, measure_on=trace).to_dict()
