"""A short run of every reader, the same in every test run. `make fuzz` runs them for as long as is wanted."""

import pytest

from tests.fuzz.fuzzing import fuzz
from tests.fuzz.targets import TARGETS

EXAMPLES = 150


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_read_or_refused_in_a_line_and_in_little_memory(name):
    found = fuzz(name, examples=EXAMPLES)
    assert found.failures == []
    assert found.examples == EXAMPLES
    assert sum(found.refused.values()) > EXAMPLES // 10, "the damage does damage"
