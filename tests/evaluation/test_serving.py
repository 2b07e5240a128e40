"""On which device each token comes in, and in which batch."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.evaluation.serving import decode_steps, number_batches, sources

from .cases import trace_of
from .reference import reference_sources


def test_requests_are_dealt_in_order_of_first_appearance():
    """Requests 9, 3, 9, 7, 3, -1 over two devices: 9 -> 0, 3 -> 1, 7 -> 0, -1 -> 1."""
    trace = trace_of([[[0]]] * 6, 1, request_ids=np.array([9, 3, 9, 7, 3, -1], np.int32))
    assert sources(trace, 2).tolist() == [0, 1, 0, 0, 1, 1]
    assert sources(trace, 3).tolist() == [0, 1, 0, 2, 1, 0]
    assert sources(trace_of([[[0]]] * 4, 1), 3).tolist() == [0, 1, 2, 0]


@given(requests=st.lists(st.integers(-3, 6), max_size=20), devices=st.integers(1, 5))
def test_sources_are_the_reference(requests, devices):
    trace = trace_of(np.zeros((len(requests), 1, 1)), 1, request_ids=np.array(requests, np.int32))
    assert sources(trace, devices).tolist() == reference_sources(requests, devices)


def test_decode_batches_by_hand():
    """Requests a a b a b b: prefill, decode, decode, decode, prefill, decode."""
    requests, phase = np.array([4, 4, 2, 4, 2, 2], np.int32), np.array([0, 1, 1, 1, 0, 1], np.uint8)
    trace = trace_of([[[0]]] * 6, 1, request_ids=requests, phase=phase)
    assert decode_steps(trace).tolist() == [-1, 0, 0, 1, -1, 1]
    assert decode_steps(trace_of([[[0]]], 1)) is None
    assert decode_steps(trace_of([[[0]]], 1, phase=np.zeros(1, np.uint8))) is None


def test_batches_by_hand():
    """Prefill in twos: 0 0 1; then decode steps 0 and 1 as batches 2 and 3."""
    assert number_batches(np.array([-1, 0, -1, 1, -1]), 5, 2).tolist() == [0, 2, 0, 3, 1]
    assert number_batches(None, 5, 2).tolist() == [0, 0, 1, 1, 2]
    assert number_batches(np.array([1, 0]), 2, 1024).tolist() == [1, 0]
    assert number_batches(None, 0, 1).tolist() == []
