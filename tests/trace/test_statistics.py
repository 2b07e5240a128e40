"""Loads, skew and activations of a trace, by hand."""

import numpy as np

from grace_moe.trace import (
    activations,
    expert_loads,
    skew,
)
from tests.trace.samples import HAND, trace_of


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
