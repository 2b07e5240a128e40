"""RoutingTrace: what it accepts, how it splits, and its statistics by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.errors import TraceError
from grace_moe.trace import (
    DECODE,
    RoutingTrace,
    activations,
    concatenate,
    expert_loads,
    mixed,
    request_numbers,
    skew,
    synthetic_trace,
    without_unrecorded,
)


def trace_of(ids, *, experts=8, layer_ids=None, dtype=np.int16, **rest) -> RoutingTrace:
    """A trace of nested lists `[tokens][layers][k]`."""
    ids = np.array(ids, dtype=dtype)
    return RoutingTrace(
        topk_ids=ids, num_experts=experts, layer_ids=tuple(range(ids.shape[1])) if layer_ids is None else layer_ids, source="here", **rest
    )


HAND = [[[0, 1], [2, 3]], [[1, -1], [3, 2]], [[1, 2], [-1, -1]]]


def test_loads_and_skew_by_hand():
    """Layer 0: expert 1 in three tokens of five choices; layer 1: experts 2 and 3 twice each. Four experts."""
    trace = trace_of(HAND, experts=4)
    assert expert_loads(trace).tolist() == [[1, 3, 1, 0], [0, 0, 2, 2]]
    assert skew(trace).tolist() == [3 / 1.25, 2.0]
    assert activations(trace.topk_ids[:, 0], 4).toarray().tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0]]
    assert (trace.num_tokens, trace.num_layers, trace.top_k) == (3, 2, 2)


def test_skew_of_an_empty_trace_is_nothing():
    trace = trace_of(np.empty((0, 2, 3)))
    assert skew(trace).tolist() == [0.0, 0.0]
    assert activations(trace.topk_ids[:, 0], 8).shape == (0, 8)


def test_without_request_ids_each_token_is_its_own_request():
    assert trace_of(HAND).requests.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"topk_ids": np.zeros((2, 2), np.int16)},
            "here: topk_ids: int16 (2, 2) is not int16 or int32 [tokens, layers, k]; record it again",
        ),
        ({"topk_ids": np.zeros((2, 1, 1), np.int64)}, "here: topk_ids: int64 (2, 1, 1) is not"),
        ({"topk_ids": np.zeros((2, 1, 1), ">i2")}, "here: topk_ids: >i2 (2, 1, 1) is not"),
        ({"topk_ids": np.full((2, 1, 1), 4, np.int16)}, "here: topk_ids: expert id 4 is not in -1..3; check num_experts"),
        ({"topk_ids": np.full((2, 1, 1), -2, np.int16)}, "here: topk_ids: expert id -2 is not in -1..3; check num_experts"),
        ({"topk_ids": np.array([[[0, 1]], [[3, 3]]], np.int16)}, "here: topk_ids: token 1 names an expert twice in layer 7; a router"),
        ({"topk_ids": np.zeros((2, 1, 0), np.int16)}, "here: topk_ids: k = 0 is not in 1..4; check num_experts"),
        ({"topk_ids": np.zeros((2, 1, 5), np.int16)}, "here: topk_ids: k = 5 is not in 1..4; check num_experts"),
        ({"num_experts": 0}, "here: num_experts: 0 is not in 1..32767"),
        ({"num_experts": 40_000}, "here: num_experts: 40000 is not in 1..32767"),
        ({"layer_ids": ()}, "here: layer_ids: 0 numbers for 1 layers; name each layer once"),
        ({"layer_ids": (-5,)}, "here: layer_ids: -5 is not in 0..99999; give the model's own numbers of its layers"),
        ({"layer_ids": (2**40,)}, "here: layer_ids: 1099511627776 is not in 0..99999"),
        ({"layer_ids": (True,)}, "here: layer_ids: True is not in 0..99999"),
        ({"model": "a\udcff"}, "here: model: 'a\\udcff' has bytes that are no text; give it another name"),
        ({"dataset": "\ud800"}, "here: dataset: '\\ud800' has bytes that are no text"),
        ({"request_ids": np.zeros(3, np.int32)}, "here: request_ids: int32 (3,) is not int32 (2,); record it again"),
        ({"request_ids": np.zeros(2, np.int64)}, "here: request_ids: int64 (2,) is not int32 (2,); record it again"),
        ({"phase": np.zeros(2, np.int8)}, "here: phase: int8 (2,) is not uint8 (2,); record it again"),
        ({"phase": np.array([0, 2], np.uint8)}, "here: phase: value 2 is not 0 (prefill) or 1 (decode); record it again"),
        ({"topk_weights": np.zeros((2, 1, 2), np.float16)}, "here: topk_weights: float16 (2, 1, 2) is not float16 (2, 1, 1)"),
        ({"topk_weights": np.zeros((2, 1, 1), np.float32)}, "here: topk_weights: float32 (2, 1, 1) is not float16 (2, 1, 1)"),
        ({"topk_weights": np.full((2, 1, 1), np.nan, np.float16)}, "here: topk_weights: not all are finite numbers; record it again"),
    ],
)
def test_what_a_trace_refuses(changes, text):
    good = {"topk_ids": np.zeros((2, 1, 1), np.int16), "num_experts": 4, "layer_ids": (7,), "source": "here"}
    RoutingTrace(**good)
    with pytest.raises(TraceError) as error:
        RoutingTrace(**good | changes)
    assert str(error.value).startswith(text)
    assert len(str(error.value).splitlines()) == 1


def test_none_may_be_chosen_twice():
    assert trace_of([[[-1, -1]]]).num_tokens == 1


def test_an_expert_twice_is_found_beyond_the_first_block():
    ids = np.zeros((70_000, 1, 2), np.int32)
    ids[:, :, 1] = 1
    ids[69_999] = 5
    with pytest.raises(TraceError, match="token 69999 names an expert twice"):
        trace_of(ids, dtype=np.int32)


def test_rows_without_a_choice_are_left_out_and_counted():
    """Of five rows two chose nothing in any layer; one that chose in a single layer stays."""
    none = [[-1, -1], [-1, -1]]
    trace = trace_of([none, HAND[0], none, HAND[2], HAND[1]], phase=np.array([0, 0, 1, 1, 1], np.uint8))
    rest, left_out = without_unrecorded(trace)
    assert left_out == 2
    assert rest.topk_ids.tolist() == [HAND[0], HAND[2], HAND[1]]
    assert rest.requests.tolist() == [1, 3, 4]
    assert rest.phase.tolist() == [0, 1, 1]
    assert without_unrecorded(rest) == (rest, 0)
    assert without_unrecorded(trace_of([none]))[0].num_tokens == 0


@given(names=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3)))
def test_different_requests_stay_different(names):
    numbers = request_numbers(np.array(names, np.int64))
    assert numbers.dtype == np.int32
    assert len(set(numbers.tolist())) == len(set(names))
    assert len(set(zip(names, numbers.tolist(), strict=True))) == len(set(names))
    if all(abs(name) < 2**31 for name in names):
        assert numbers.tolist() == names


def test_layers_named_twice():
    with pytest.raises(TraceError, match="layer_ids"):
        trace_of(HAND, layer_ids=(3, 3))


@given(requests=st.lists(st.integers(-5, 5), min_size=2, max_size=20).filter(lambda r: len(set(r)) > 1))
def test_halves_share_no_request_and_lose_no_token(requests):
    ids = np.arange(len(requests), dtype=np.int16).reshape(-1, 1, 1)
    trace = trace_of(ids, experts=64, request_ids=np.array(requests, np.int32))
    first, second = trace.split_requests()
    assert not set(first.requests.tolist()) & set(second.requests.tolist())
    assert sorted(first.topk_ids.ravel().tolist() + second.topk_ids.ravel().tolist()) == list(range(len(requests)))
    assert abs(len(set(first.requests.tolist())) - len(set(second.requests.tolist()))) <= 1


def test_one_request_has_no_halves():
    with pytest.raises(TraceError, match="one request can't be split in two halves; give a second trace to measure on"):
        trace_of(HAND, request_ids=np.zeros(3, np.int32)).split_requests()


def test_select_keeps_what_belongs_to_a_token():
    weights = np.arange(12, dtype=np.float16).reshape(3, 2, 2)
    trace = trace_of(HAND, request_ids=np.array([5, 9, 5], np.int32), phase=np.array([0, 0, 1], np.uint8), topk_weights=weights)
    part = trace.select(np.array([2, 0]))
    assert part.topk_ids.tolist() == [HAND[2], HAND[0]]
    assert part.requests.tolist() == [5, 5]
    assert part.phase.tolist() == [DECODE, 0]
    assert (part.topk_weights == weights[[2, 0]]).all()
    assert trace.select(np.zeros(3, bool)).num_tokens == 0


def test_concatenated_requests_stay_apart():
    one = trace_of(HAND, request_ids=np.array([7, 7, 3], np.int32), dataset="a", phase=np.zeros(3, np.uint8))
    two = trace_of(HAND, dataset="b")
    both = concatenate([one, two])
    assert both.requests.tolist() == [1, 1, 0, 2, 3, 4]
    assert both.dataset == "a + b"
    assert both.phase is None
    assert both.source == "here"


@pytest.mark.parametrize(
    ("other", "field"),
    [({"experts": 9}, "num_experts: 9"), ({"layer_ids": (4, 5)}, r"layer_ids: \(4, 5\)"), ({"model": "B"}, "model: 'B'")],
)
def test_traces_of_different_models_are_not_joined(other, field):
    one, two = replace(trace_of(HAND, model="A"), source="a"), replace(trace_of(HAND, **{"model": "A", **other}), source="b")
    with pytest.raises(TraceError, match=f"b: {field}, but a has"):
        concatenate([one, two])
    assert concatenate([one, replace(two, model="", num_experts=one.num_experts, layer_ids=one.layer_ids)]).model == "A"


def test_mixed_traces_weigh_the_same_and_their_requests_are_as_many():
    long = trace_of(HAND, request_ids=np.array([7, 7, 3], np.int32))
    short = long.select(np.array([0, 2]))
    both = mixed([short, long])
    assert both.topk_ids[:, 0].tolist() == [HAND[t][0] for t in (0, 0, 2, 0, 1, 2)]
    assert both.requests.tolist() == [1, 1, 0, 3, 3, 2]
    assert mixed([long]) is long
    assert mixed([long, long.select(np.zeros(3, bool))]).num_tokens == 3


def test_digest_names_the_choices_and_nothing_else():
    trace = trace_of(HAND, experts=4)
    assert trace.digest == trace_of(HAND, experts=4, dtype=np.int32, model="another").digest
    assert len({trace.digest, trace_of(HAND, experts=5).digest, trace_of(HAND[::-1], experts=4).digest}) == 3
    assert trace.digest != trace_of(HAND, experts=4, request_ids=np.zeros(3, np.int32)).digest


def test_synthetic_traces_repeat_and_are_skewed():
    make = {"tokens": 2000, "experts": 16, "top_k": 2, "layers": 2}
    assert synthetic_trace(**make).digest == synthetic_trace(**make).digest != synthetic_trace(**make, seed=1).digest
    assert (skew(synthetic_trace(**make, skew=1.5)) > skew(synthetic_trace(**make, skew=0.0, affinity=0.0))).all()
    assert synthetic_trace(tokens=0, experts=4, top_k=2).num_tokens == 0
