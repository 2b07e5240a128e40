"""Whole numbers from outside, checked before they are narrowed or added up."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.errors import InputFileError
from grace_moe.files.limits import MAX_COUNT

Integers = npt.NDArray[np.integer[Any]]


def narrow(array: Integers, dtype: npt.DTypeLike, *, kind: type[InputFileError], source: str, field: str) -> Any:
    """The same numbers as `dtype`.

    Raises:
        InputFileError: (of the given kind) a number that `dtype` does not have.
    """
    limits = np.iinfo(dtype)
    if array.size:
        low, high = int(array.min()), int(array.max())
        if low < limits.min or high > limits.max:
            bad = high if high > limits.max else low
            raise kind(source, field, f"{bad} is not in {limits.min}..{limits.max}", "check what wrote it")
    return array.astype(dtype, copy=False)


def bounded_counts(counts: Integers, *, kind: type[InputFileError], source: str, field: str) -> npt.NDArray[np.int64]:
    """Counts as int64, none so large that a sum of them could wrap.

    Raises:
        InputFileError: (of the given kind) a count that is negative or over `MAX_COUNT`, or over 2^62 in all.
    """
    if counts.size and int(counts.min()) < 0:
        raise kind(source, field, f"some negative ({int(counts.min())})", "record some requests again")
    largest = int(counts.max(initial=0))
    if largest > MAX_COUNT or counts.sum(dtype=np.float64) > 2**62:
        raise kind(source, field, f"a count of {largest} is over the limit of {MAX_COUNT}, or their sum is", "check what wrote it")
    return counts.astype(np.int64, copy=False)
