"""SECURITY.md names the limits that the code has."""

import re
from pathlib import Path

from grace_moe import files
from tests.fuzz import fuzzing, test_fuzz

PAGE = (Path(__file__).parents[1] / "SECURITY.md").read_text(encoding="utf-8")


def test_the_table_of_limits_is_that_of_the_code():
    table = dict(re.findall(r"\| ([\d,]+) \| `(\w+)` \|", PAGE))
    found = {name: int(number.replace(",", "")) for number, name in table.items()}
    assert found == {name: getattr(files, name) for name in files.__all__ if name.isupper()}


def test_the_memory_that_it_promises_is_what_is_tested():
    assert f"at most {files.FREE_BYTES // 2**20} MiB and {files.BYTES_PER_BYTE} bytes for each byte" in PAGE
    assert f"at most {fuzzing.FREE_BYTES // 2**20} MiB and {fuzzing.BYTES_PER_BYTE} bytes\n  in all" in PAGE
    assert f"runs {test_fuzz.EXAMPLES} files a reader" in PAGE
