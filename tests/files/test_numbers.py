"""Numbers are narrowed where they fit, and counts are added where no sum can wrap."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from grace_moe.errors import TraceError
from grace_moe.files import MAX_COUNT, bounded_counts, narrow

NAMED = {"kind": TraceError, "source": "a", "field": "b"}
integers = hnp.arrays(st.sampled_from([np.int8, np.uint8, np.int64, np.uint64]), hnp.array_shapes(min_dims=0, max_dims=2, min_side=0))


@given(array=integers, dtype=st.sampled_from(["i1", "u1", "i2", "i4", "i8"]))
def test_narrowed_is_the_same_number_or_an_error(array, dtype):
    fits = all(np.iinfo(dtype).min <= int(x) <= np.iinfo(dtype).max for x in array.ravel())
    if not fits:
        with pytest.raises(TraceError, match=r"a: b: .* is not in"):
            narrow(array, dtype, **NAMED)
        return
    assert narrow(array, dtype, **NAMED).dtype == dtype
    assert (narrow(array, dtype, **NAMED).astype(object) == array.astype(object)).all()


def test_counts_at_the_limit():
    assert bounded_counts(np.array([0, MAX_COUNT], np.uint64), **NAMED).tolist() == [0, MAX_COUNT]
    assert bounded_counts(np.empty((0, 3), np.int32), **NAMED).shape == (0, 3)
    for bad in ([MAX_COUNT + 1], [2**62, 2**62], [2**63 - 1]):
        with pytest.raises(TraceError, match="over the limit of 1099511627776"):
            bounded_counts(np.array(bad), **NAMED)
    with pytest.raises(TraceError, match=r"some negative \(-3\)"):
        bounded_counts(np.array([4, -3]), **NAMED)
    many = np.broadcast_to(np.int64(MAX_COUNT), (2**12, 2**11))
    with pytest.raises(TraceError, match="or their sum is"):
        bounded_counts(many, **NAMED)
