"""Whether the halves of a trace are of the same traffic: what a figure measured on one tells of a plan made on the other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.placement import check_same_model
from grace_moe.trace import RoutingTrace
from grace_moe.trace.change import FEWEST_REQUESTS, change_between

FALSE_ALARMS = 1e-3
"""Share of traces whose halves are alike, and are called unlike. Not tuned: the alarm is a line to read."""


def parts_of(trace: RoutingTrace, measure_on: RoutingTrace | None) -> tuple[RoutingTrace, RoutingTrace, tuple[str, ...]]:
    """What is planned on, what is measured on, and what to note: `trace` and `measure_on`, or else the trace's halves.

    Raises:
        MismatchError: they are of different models.
        TraceError: one request has no halves.
    """
    if measure_on is not None:
        check_same_model(trace, measure_on)
        return trace, measure_on, ()
    first, second = trace.split_requests()
    return first, second, unlike_halves(first, second)


def unlike_halves(planned_on: RoutingTrace, measured_on: RoutingTrace) -> tuple[str, ...]:
    """A note where two halves of a trace differ in the lengths of their requests, or in the experts' loads, as chance would let
    `FALSE_ALARMS` of all traces' halves do; else nothing.

    Lengths are compared by ranks (Mann and Whitney), loads by permutations of requests (`trace.change`). Nothing is told of fewer than
    `FEWEST_REQUESTS` in a half, or where every token is a request of its own: neighbours are then alike, and no test may mix them.
    """
    lengths = [np.unique(half.requests, return_counts=True)[1] for half in (planned_on, measured_on)]
    if min(map(len, lengths)) < FEWEST_REQUESTS or max(half.max() for half in lengths) == 1:
        return ()
    if _chance_of_lengths(*lengths) < FALSE_ALARMS / 2:
        differ = f"requests planned on have {lengths[0].mean():,.0f} tokens on average, those measured on {lengths[1].mean():,.0f}"
    elif change_between(planned_on, measured_on).chance < FALSE_ALARMS / 2:
        differ = "requests planned on choose other experts than those measured on"
    else:
        return ()
    return (
        f"{planned_on.source}: every second request is other traffic: {differ} (by chance in one trace of {1 / FALSE_ALARMS:,.0f}). "
        "Figures are of a plan for other traffic; give --eval a trace to measure on, or draw the halves by --split-seed.",
    )


def _chance_of_lengths(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """Of ranks of lengths that differ as much without a difference, either way: the normal approximation, ties sharing a rank."""
    pooled = np.concatenate([one, other])
    _, which, ties = np.unique(pooled, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(ties) - (ties - 1) / 2)[which]
    total = len(pooled)
    tied = ((ties.astype(float) ** 3) - ties).sum()  # of whole numbers the cubes of millions would overflow
    variance = len(one) * len(other) / 12 * (total + 1 - tied / (total * (total - 1)))
    if variance <= 0:  # all requests are of one length
        return 1.0
    distance = abs(ranks[: len(one)].sum() - len(one) * (total + 1) / 2)
    return math.erfc(max(distance - 0.5, 0.0) / math.sqrt(2 * variance))
