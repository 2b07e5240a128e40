"""How kernels are compiled: whole ones into a file on disk, their parts only as parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])

_PART: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": False}


def part(function: Function) -> Function:
    """A compiled function that kernels alone call: no way in from Python, no counting of references, as it allocates nothing.

    It takes a third of the time to compile.
    """
    return cast("Function", njit(**_PART)(function))


def hot_part(function: Function) -> Function:
    """A part that is copied into whatever calls it: a state of many arrays is not passed on at every call.

    For the innermost loops of a search, which become twice as fast; compilation takes longer.
    """
    return cast("Function", njit(**_PART, forceinline=True)(function))


def kernel(function: Function) -> Function:
    """A compiled function that Python calls; what was compiled is kept in the cache on disk."""
    return cast("Function", njit(cache=True, nogil=True, error_model="numpy")(function))


def inlined(function: Function) -> Function:
    """A function that is compiled into each kernel that calls it, and not by itself."""
    return cast("Function", njit(inline="always")(function))
