"""What a candidate layer would save on requests that it was not planned on, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grace_moe.adapt.prices import Prices
from grace_moe.adapt.request_costs import RequestCosts

RESAMPLES = 64
"""Bootstrap samples. Not tuned."""
LOW = 0.05
"""Quantile that stands for the gain that is sure enough. Not tuned."""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Copies per token, of one layer or of several together."""

    mean: float
    samples: tuple[float, ...] = (0.0,) * RESAMPLES
    """The gain in each bootstrap sample of the requests; samples are the same for all layers."""

    @property
    def low(self) -> float:
        """The gain is larger in 95% of bootstrap samples."""
        return float(np.quantile(self.samples, LOW))

    def over(self, layers: int) -> Gain:
        """The mean over so many layers."""
        return Gain(mean=self.mean / layers, samples=tuple(sample / layers for sample in self.samples))


def sum_of(gains: Iterable[Gain]) -> Gain:
    """The gain of several layers together: it is surer than that of each, as far as they err apart."""
    known = [Gain(mean=0.0), *gains]
    return Gain(mean=sum(gain.mean for gain in known), samples=tuple(map(sum, zip(*(gain.samples for gain in known), strict=True))))


def cost_per_token(costs: RequestCosts, prices: Prices, weights: npt.NDArray[np.float64] | None = None) -> npt.NDArray[np.float64]:
    """`[samples]` copies per token and the price of the busiest device over the mean.

    Args:
        weights: `[samples, R]` of the requests; None = each counts once.
    """
    weights = np.ones((1, len(costs.tokens))) if weights is None else weights
    pairs = weights @ costs.pairs
    mean = pairs.mean(axis=1)
    over = np.divide(pairs.max(axis=1), mean, out=np.ones(len(pairs)), where=mean > 0) - 1
    cost: npt.NDArray[np.float64] = weights @ costs.copies / np.maximum(weights @ costs.tokens, 1e-12) + prices.imbalance * over
    return cost


def balance_of(costs: RequestCosts) -> float:
    """Load of the busiest device over the mean, of all requests together."""
    pairs = costs.pairs.sum(axis=0)
    return float(pairs.max() / pairs.mean()) if pairs.any() else 1.0


def gain_of(candidate: RequestCosts, serving: RequestCosts, prices: Prices, *, seed: int) -> Gain:
    """What the candidate saves, on the same requests; bootstrap samples are the same for all candidates of a seed."""
    random = np.random.default_rng(seed)
    weights = random.exponential(size=(RESAMPLES, len(serving.tokens)))
    saved = cost_per_token(serving, prices, weights) - cost_per_token(candidate, prices, weights)
    mean = cost_per_token(serving, prices) - cost_per_token(candidate, prices)
    return Gain(mean=float(mean[0]), samples=tuple(saved.tolist()))
