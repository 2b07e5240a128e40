"""What candidates of several layers would save on requests that they were not planned on, and how sure that is.

Layers are judged together, as one request chooses in all of them. All candidates of one kind must surely save something in sum, so that a
few layers which look good by chance don't count. Then what a layer's requests say is drawn towards the mean of all layers, the more, the
less they agree (empirical Bayes: Efron and Morris 1973): the best of many candidates looks better than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from grace_moe.adapt.prices import Prices
from grace_moe.adapt.request_costs import RequestCosts

RESAMPLES = 256
"""Bootstrap samples. Not tuned: a standard error is known within a twentieth."""
HARM = 0.01
"""Chance that candidates which save nothing in sum are told to. Not tuned: with two kinds at each of eight looks, at most one
change in six."""
LOW = 0.05
"""Chance that a layer saves less than what is called sure, where nothing else bounds what an error costs. Not tuned."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Copies per token of one layer."""

    mean: float
    low: float
    """The gain is surely larger; not above 0 where the candidates of all layers don't surely save anything."""


def cost_per_token(costs: RequestCosts, prices: Prices, weights: Floats | None = None) -> Floats:
    """`[samples]` copies per token and the price of the busiest device over the mean.

    Args:
        weights: `[samples, R]` of the requests; None = each counts once.
    """
    weights = np.ones((1, len(costs.tokens))) if weights is None else weights
    pairs = weights @ costs.pairs
    mean = pairs.mean(axis=1)
    over = np.divide(pairs.max(axis=1), mean, out=np.ones(len(pairs)), where=mean > 0) - 1
    cost: Floats = weights @ costs.copies / np.maximum(weights @ costs.tokens, 1e-12) + prices.imbalance * over
    return cost


def balance_of(costs: RequestCosts) -> float:
    """Load of the busiest device over the mean, of all requests together."""
    pairs = costs.pairs.sum(axis=0)
    return float(pairs.max() / pairs.mean()) if pairs.any() else 1.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Costs of the same requests under what serves, and under candidates that were planned on others. One of each layer."""

    candidates: Sequence[RequestCosts]
    serving: Sequence[RequestCosts]


def gains_of(trials: Sequence[Trial], prices: Prices, *, seed: int, chance_of_less: float = LOW) -> list[Gain]:
    """What a candidate of each layer saves, all on the same requests; resamples are the same for all candidates of a seed.

    Fewer requests tell less: of R requests, as many count as of equal length would say as much, and Student's distribution is taken.

    Args:
        trials: one, or one of each half of the requests, where candidates of either half are judged by the other; the mean of them counts.
        chance_of_less: that a layer saves less than what is called sure.
    """
    tokens = [trial.serving[0].tokens for trial in trials]
    weights = [np.random.default_rng(seed + place).exponential(size=(RESAMPLES, len(of))) for place, of in enumerate(tokens)]
    saved = np.mean([_saved(trial, prices, None) for trial in trials], axis=0)
    drawn = np.mean([_saved(trial, prices, of) for trial, of in zip(trials, weights, strict=True)], axis=0)
    freedom = sum(max(1.0, of.sum() ** 2 / max((of**2).sum(), 1e-12) - 1) for of in tokens)
    common = drawn.mean(axis=0).std(ddof=1)
    harmless = saved.mean() > student.ppf(1 - HARM, freedom) * common
    mean, error = _shrunk(saved[:, 0], drawn.var(axis=1, ddof=1), common**2)
    low = mean - student.ppf(1 - chance_of_less, freedom) * error
    return [Gain(mean=float(m), low=float(at_least if harmless else min(0.0, at_least))) for m, at_least in zip(mean, low, strict=True)]


def _saved(trial: Trial, prices: Prices, weights: Floats | None) -> Floats:
    """`[L, samples]` copies per token."""
    pairs = zip(trial.candidates, trial.serving, strict=True)
    return np.stack([cost_per_token(old, prices, weights) - cost_per_token(new, prices, weights) for new, old in pairs])


def _shrunk(saved: Floats, variance: Floats, common: float) -> tuple[Floats, Floats]:
    """`[L]` what each layer saves, drawn towards the mean, and its standard error.

    Args:
        saved: `[L]` as measured.
        variance: `[L]` of its error.
        common: variance of the error of the mean over layers.
    """
    if len(saved) == 1:
        return saved, np.sqrt(variance)
    true = max(0.0, saved.var(ddof=1) - (variance.mean() - common))
    own = np.divide(true, true + variance, out=np.ones(len(saved)), where=true + variance > 0)
    error: Floats = np.sqrt(own * variance + (1 - own) ** 2 * common)
    return own * saved + (1 - own) * saved.mean(), error
