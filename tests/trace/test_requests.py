"""Numbers of requests."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.trace import (
    request_numbers,
)


@given(names=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3)))
def test_different_requests_stay_different(names):
    numbers = request_numbers(np.array(names, np.int64))
    assert numbers.dtype == np.int32
    assert len(set(numbers.tolist())) == len(set(names))
    assert len(set(zip(names, numbers.tolist(), strict=True))) == len(set(names))
    if all(abs(name) < 2**31 for name in names):
        assert numbers.tolist() == names
