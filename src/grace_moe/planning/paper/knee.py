"""Choosing r: the knee of utilisation over size deviation (docs/method.md#choosing-r)."""

import warnings
from collections.abc import Sequence
from functools import partial

import numpy as np
from kneed import KneeLocator

from grace_moe.planning.paper.grouping import GroupingDraft
from grace_moe.planning.paper.sizes import controlled_sizes

CANDIDATES = tuple(step / 20 for step in range(1, 21))
"""Ratios that are tried: 0.05, 0.10, ... 1.00."""
FALLBACK = 0.15
"""Where the curve has no knee: what the paper reports for OLMoE on 2x2."""


def utilisation_curve(drafts: Sequence[GroupingDraft]) -> tuple[list[float], list[float]]:
    """(S, U) of each candidate, mean over the layers."""
    deviations, utilisations = [], []
    for ratio in CANDIDATES:
        held = [draft.hold(partial(controlled_sizes, ratio=ratio)) for draft in drafts]
        deviations.append(float(np.mean([grouping.deviation for grouping in held])))
        utilisations.append(float(np.mean([grouping.utilisation for grouping in held])))
    return deviations, utilisations


def knee_ratio(drafts: Sequence[GroupingDraft]) -> float | None:
    """The ratio at the knee, one for all layers; None where the curve has none.

    References:
        V. Satopaa et al., Finding a "Kneedle" in a Haystack (2011).
    """
    deviations, utilisations = utilisation_curve(drafts)
    best: dict[float, tuple[float, float]] = {}
    for deviation, used, ratio in zip(deviations, utilisations, CANDIDATES, strict=True):
        if deviation not in best or used > best[deviation][0]:
            best[deviation] = (used, ratio)
    points = sorted((deviation, used, ratio) for deviation, (used, ratio) in best.items())
    if len(points) < 3 or len({used for _, used, _ in points}) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It warns where there is no knee.
        knee = KneeLocator([p[0] for p in points], [p[1] for p in points], curve="concave", direction="increasing").knee
    return next((ratio for deviation, _, ratio in points if deviation == knee), None)
