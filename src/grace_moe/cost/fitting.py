"""Least squares of relative errors, robust against rows that are off, with coefficients that are not negative."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

Floats = npt.NDArray[np.float64]
_ROUNDS = 20
_CAREFUL = 1.5
"""Errors beyond so many times the usual one count by their size and not by its square (Huber)."""
_LEAST_ERROR = 1e-4
HELD_OUT = 5
"""Each so-manieth row is held out once."""


def relative_fit(columns: Floats, times: Floats, importance: Floats | None = None) -> Floats:
    """`[columns]` coefficients, none negative, that make `columns @ coefficients` near to `times` relative to them.

    Args:
        columns: `[rows, columns]`.
        times: `[rows]` positive.
        importance: `[rows]` weights; None = all alike.
    """
    importance = np.ones(len(times)) if importance is None else importance / importance.mean()
    careful = np.ones(len(times))
    found = np.zeros(columns.shape[1])
    for _ in range(_ROUNDS):
        weight = careful * np.sqrt(importance) / times
        weighted = columns * weight[:, None]
        size = np.linalg.norm(weighted, axis=0)
        size[size == 0] = 1.0
        found = nnls(weighted / size, times * weight)[0] / size
        careful = huber(columns @ found / times - 1)
    return found


def huber(errors: Floats) -> Floats:
    """`[rows]` square roots of the weights that make least squares of these errors robust."""
    usual = max(1.4826 * float(np.median(np.abs(errors))), _LEAST_ERROR)
    return np.sqrt(1 / np.maximum(1, np.abs(errors) / (_CAREFUL * usual)))


@dataclass(frozen=True, kw_only=True)
class FitError:
    """Relative errors of predictions."""

    points: int
    median: float
    p95: float

    def to_dict(self) -> dict[str, Any]:
        """JSON, by the names of docs/cost.md."""
        return {"points": self.points, "median_error": round(self.median, 4), "p95_error": round(self.p95, 4)}


def error_of(predicted: Floats, measured: Floats) -> FitError:
    """Absolute values of the relative errors, summarised."""
    errors = np.abs(predicted / measured - 1)
    return FitError(points=len(errors), median=float(np.median(errors)), p95=float(np.quantile(errors, 0.95)))


def balanced(regimes: npt.NDArray[Any]) -> Floats:
    """`[rows]` weights that make every regime count the same."""
    _, regime, sizes = np.unique(regimes, return_inverse=True, return_counts=True)
    return 1.0 / sizes[regime]


def held_out(predicted: Callable[[npt.NDArray[np.bool_]], Floats], seconds: Floats) -> FitError | None:
    """The error of each fifth row in turn, fitted without; None where there are too few rows."""
    fold = np.arange(len(seconds)) % HELD_OUT
    if len(seconds) < 2 * HELD_OUT:
        return None
    found = np.zeros(len(seconds))
    for turn in range(HELD_OUT):
        found[fold == turn] = predicted(fold != turn)[fold == turn]
    return error_of(found, seconds)
