"""RoutingTrace: what it accepts, and how it splits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.errors import TraceError
from grace_moe.trace import (
    DECODE,
    RoutingTrace,
)
from tests.trace.samples import HAND, trace_of


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


def test_layers_named_twice():
    with pytest.raises(TraceError, match="layer_ids"):
        trace_of(HAND, layer_ids=(3, 3))


@given(requests=st.lists(st.integers(-5, 5), min_size=2, max_size=20).filter(lambda r: len(set(r)) > 1), seed=st.none() | st.integers(0, 9))
def test_halves_share_no_request_and_lose_no_token(requests, seed):
    ids = np.arange(len(requests), dtype=np.int16).reshape(-1, 1, 1)
    trace = trace_of(ids, experts=64, request_ids=np.array(requests, np.int32))
    first, second = trace.split_requests(seed)
    assert not set(first.requests.tolist()) & set(second.requests.tolist())
    assert sorted(first.topk_ids.ravel().tolist() + second.topk_ids.ravel().tolist()) == list(range(len(requests)))
    assert abs(len(set(first.requests.tolist())) - len(set(second.requests.tolist()))) <= 1


def test_halves_at_random_do_not_follow_requests_that_take_turns():
    trace = trace_of(np.arange(40, dtype=np.int16).reshape(-1, 1, 1), experts=64, request_ids=np.arange(40, dtype=np.int32))
    odd = [int((trace.split_requests(seed)[0].requests % 2).sum()) for seed in (None, 0, 1, 2)]
    assert odd[0] == 0
    assert all(5 <= number <= 15 for number in odd[1:])


def test_one_request_has_no_halves():
    with pytest.raises(TraceError, match="one request can't be split in two halves; give a second trace to measure on"):
        trace_of(HAND, request_ids=np.zeros(3, np.int32)).split_requests()


def test_select_keeps_what_belongs_to_a_token():
    weights = np.arange(12, dtype=np.float16).reshape(3, 2, 2)
    columns = {
        "request_ids": np.array([5, 9, 5], np.int32),
        "phase": np.array([0, 0, 1], np.uint8),
        "token_ids": np.arange(3, dtype=np.int32),
    }
    trace = trace_of(HAND, topk_weights=weights, **columns)
    part = trace.select(np.array([2, 0]))
    assert part.topk_ids.tolist() == [HAND[2], HAND[0]]
    assert part.requests.tolist() == [5, 5]
    assert part.phase.tolist() == [DECODE, 0]
    assert part.token_ids.tolist() == [2, 0]
    assert (part.topk_weights == weights[[2, 0]]).all()
    assert trace.select(np.zeros(3, bool)).num_tokens == 0


def test_digest_names_the_choices_and_nothing_else():
    trace = trace_of(HAND, experts=4)
    assert trace.digest == trace_of(HAND, experts=4, dtype=np.int32, model="another").digest
    assert len({trace.digest, trace_of(HAND, experts=5).digest, trace_of(HAND[::-1], experts=4).digest}) == 3
    assert trace.digest != trace_of(HAND, experts=4, request_ids=np.zeros(3, np.int32)).digest
