"""Step 12: which of its placements each layer takes: least traffic, with the busiest device within the tolerance, mean over layers.

Balance is asked of the model as a whole: a layer where it is cheap makes up for one where it is dear. All layers pay the same
rate, in copies per token, for a unit of the busiest device's load. The rate is a Lagrange multiplier: the lowest of those tried
at which the expected balance is within the tolerance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from grace_moe.placement import LayerPlacement
from grace_moe.planning.constants import LEAST_RATE, RATE_STEP, RATES

Origin: TypeAlias = Literal["search", "eplb"]
"""What placed a layer on its devices: our search, or EPLB (perhaps with whole devices moved to other nodes)."""

_RATES = (0.0, *(LEAST_RATE * RATE_STEP**step for step in range(RATES)), np.inf)
"""Copies per token that a unit of the busiest device's load over the mean is worth; at the last, balance is all that counts."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A placement of one layer, and what is expected of it."""

    layer: LayerPlacement
    origin: Origin
    peaks: npt.NDArray[np.float64]
    """`[DAYS]` busiest device over the mean, on each bootstrap sample (step 11)."""
    traffic: float
    """Copies between nodes, per token."""


def excess(peaks: npt.NDArray[np.float64], floors: npt.NDArray[np.float64], doubt: float) -> float:
    """Load of the busiest device over the floor's, mean over layers: on the mean day, and `doubt` standard deviations of days more.

    Args:
        peaks, floors: `[layers, DAYS]`.
    """
    ratio = peaks.mean(axis=0) / floors.mean(axis=0)
    return float(ratio.mean() + doubt * ratio.std())


def evenest(candidates: Sequence[Candidate], floor: npt.NDArray[np.float64], doubt: float) -> Candidate:
    """The candidate of one layer whose busiest device is expected to have the least load above the floor's `[DAYS]`. Ties: the first."""
    return min(candidates, key=lambda candidate: _risk(candidate.peaks - floor, doubt))


def _risk(over: npt.NDArray[np.float64], doubt: float) -> float:
    """Of loads above the floor `[DAYS]`: on the mean day, and `doubt` standard deviations of days more."""
    return float(over.mean() + doubt * over.std())


def choose_candidates(
    candidates: Sequence[Sequence[Candidate]], floors: npt.NDArray[np.float64], tolerance: float, doubt: float
) -> tuple[int, ...] | None:
    """Number of the candidate of each layer; None where no rate meets the tolerance. Ties: the first.

    At each rate, a layer takes the candidate of least `traffic + rate * risk`. Its risk: load of its busiest device above the
    floor's, over the floors' mean over layers; on the mean day, and `doubt` standard deviations of days more.

    Args:
        candidates: of each layer, at least one.
        floors: `[layers, DAYS]` peaks of the placement to compare with.
        tolerance, doubt: `excess` may be at most the tolerance.
    """
    even = floors.mean(axis=0)
    traffic = [np.array([candidate.traffic for candidate in options]) for options in candidates]
    over = [[(candidate.peaks - floor) / even for candidate in options] for options, floor in zip(candidates, floors, strict=True)]
    risk = [np.array([_risk(days, doubt) for days in options]) for options in over]
    for rate in _RATES:
        cost = risk if rate == np.inf else [copies + rate * more for copies, more in zip(traffic, risk, strict=True)]
        chosen = tuple(int(np.argmin(options)) for options in cost)
        peaks = np.stack([options[index].peaks for options, index in zip(candidates, chosen, strict=True)])
        if excess(peaks, floors, doubt) <= tolerance:
            return chosen
    return None
