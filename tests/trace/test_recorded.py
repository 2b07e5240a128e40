"""Rows without any choice are no tokens."""

import numpy as np

from grace_moe.trace import (
    without_unrecorded,
)
from tests.trace.samples import HAND, trace_of


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
