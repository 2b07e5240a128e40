"""Traces of one model, joined and mixed."""

from dataclasses import replace

import numpy as np
import pytest

from grace_moe.errors import TraceError
from grace_moe.trace import (
    concatenate,
    mixed,
)
from tests.trace.samples import HAND, trace_of


def test_concatenated_requests_stay_apart():
    one = trace_of(HAND, request_ids=np.array([7, 7, 3], np.int32), dataset="a", phase=np.zeros(3, np.uint8))
    two = trace_of(HAND, dataset="b")
    both = concatenate([one, two])
    assert both.requests.tolist() == [1, 1, 0, 2, 3, 4]
    assert both.dataset == "a + b"
    assert both.phase is None
    assert concatenate([one, one]).phase.tolist() == [0] * 6
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
