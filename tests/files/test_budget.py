"""One budget for all readers."""

import pytest

from grace_moe.errors import PlacementError
from grace_moe.files import BYTES_PER_BYTE, FREE_BYTES, check_budget


@pytest.mark.parametrize("size", [0, 1, 10**6, 10**12])
def test_the_budget_is_a_constant_and_a_multiple_of_the_size(size):
    allowed = FREE_BYTES + BYTES_PER_BYTE * size
    check_budget(allowed, size, kind=PlacementError, source="a", field="b")
    with pytest.raises(PlacementError, match=f"a: b: asks for .* MiB of memory, and a file of {size} bytes gets .*; is it the right file?"):
        check_budget(allowed + 1, size, kind=PlacementError, source="a", field="b")


def test_numbers_without_bound_make_a_short_line():
    with pytest.raises(PlacementError) as error:
        check_budget(10**4000, 10, kind=PlacementError, source="a", field="b")
    assert len(str(error.value)) < 200
