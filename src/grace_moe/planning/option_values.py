"""Checks of the values that options of a method may take."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

from grace_moe.errors import UsageError


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise UsageError unless the option's value is one of the allowed."""
    if value not in allowed:
        raise UsageError(f"{name} {value!r} is unknown; use one of {', '.join(allowed)}")


def is_within(value: Any, low: float, high: float) -> bool:
    """Whether an option's value is a number from `low` to `high`; what isn't a number is not."""
    return type(value) is not bool and isinstance(value, Real) and low <= float(value) <= high
