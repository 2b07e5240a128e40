"""Whether traffic has changed: a permutation test over requests, with a stated rate of false alarms.

Tokens of a request choose alike, so that requests, not tokens, are what is independent. Were the traffic unchanged, it would not matter
which requests are called old and which recent: the distance of the two groups' loads is compared with its distances under random
permutations. So small a chance as a rare false alarm needs is read from a gamma distribution with the permutations' mean and variance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import gammaincc

from grace_moe.trace.model import RoutingTrace
from grace_moe.trace.requests import order_of_names

PERMUTATIONS = 199
"""Not tuned: the variance of the distances is known within a tenth, one standard error."""
MOST_REQUESTS = 384
"""Most requests of a group. Not tuned: bounds time and memory."""
FEWEST_REQUESTS = 8
"""Fewest requests of a group: with fewer, no change is told. Not tuned."""
TOKENS_PER_REQUEST = 16
"""Most tokens of a request that are looked at, so that the requests of both groups are alike. Not tuned."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Change:
    """What the test found."""

    distance: float
    """Of the experts' shares of the load, squared and summed over experts, mean over layers."""
    by_layer: tuple[float, ...]
    """The distance of each layer; empty where requests are too few to tell."""
    expected: float
    """Mean distance without a change."""
    chance: float
    """Of so large a distance without a change; 1 where requests are too few to tell."""
    compared: tuple[int, int]
    """Requests before and recently, or what else is independent."""
    unit: str = "requests"
    """What those are."""


def change_between(before: RoutingTrace, recent: RoutingTrace, *, seed: int = 0) -> Change:
    """Compare sampled tokens of two stretches of traffic. The same seed gives the same answer."""
    random = np.random.default_rng(seed)
    old, new = _loads_of_requests(before, random), _loads_of_requests(recent, random)
    sizes = (len(old), len(new))
    if min(sizes) < FEWEST_REQUESTS:
        return Change(distance=0.0, by_layer=(), expected=0.0, chance=1.0, compared=sizes)
    loads = np.concatenate([old, new])
    is_new = np.arange(len(loads)) >= sizes[0]
    orders = np.stack([is_new, *(random.permutation(is_new) for _ in range(PERMUTATIONS))])
    by_layer = _distances(loads, orders, before.num_layers)
    distances = by_layer.mean(axis=1)
    drawn = distances[1:]
    mean = drawn.mean()
    # Two standard errors above the estimate, as a rare chance is read far out in the tail.
    variance = max(drawn.var(ddof=1) * (1 + 2 * math.sqrt(2 / PERMUTATIONS)), 1e-300)
    chance = float(gammaincc(mean * mean / variance, distances[0] / (variance / mean))) if mean > 0 else 1.0
    return Change(
        distance=float(distances[0]),
        by_layer=tuple(by_layer[0].tolist()),
        expected=float(mean),
        chance=chance,
        compared=sizes,
    )


def _loads_of_requests(trace: RoutingTrace, random: np.random.Generator) -> Floats:
    """`[requests, L * E]` pairs of a few tokens of each request."""
    mixed = random.permutation(trace.num_tokens)
    request, position = order_of_names(trace.requests[mixed])
    request = random.permutation(int(request.max(initial=-1)) + 1)[request]
    count = min(MOST_REQUESTS, int(request.max(initial=-1)) + 1)
    kept = (position < TOKENS_PER_REQUEST) & (request < count)
    ids = trace.topk_ids[mixed[kept]].astype(np.int64)
    layers, experts = trace.num_layers, trace.num_experts
    cells = request[kept][:, None, None] * (layers * experts) + np.arange(layers)[:, None] * experts + ids
    counts = np.bincount(cells[ids >= 0], minlength=count * layers * experts)
    return counts.reshape(count, layers * experts).astype(float)


def _distances(loads: Floats, orders: npt.NDArray[np.bool_], layers: int) -> Floats:
    """`[orders, L]` distance of the two groups that each order makes, layer by layer.

    Args:
        loads: `[requests, L * E]`.
        orders: `[orders, requests]` whether a request is called recent.
    """
    total = loads.sum(axis=0)
    recent = orders.astype(float) @ loads
    shares = []
    for group in (recent, total - recent):
        by_layer = group.reshape(len(orders), layers, -1)
        shares.append(by_layer / np.maximum(by_layer.sum(axis=2, keepdims=True), 1))
    distances: Floats = ((shares[0] - shares[1]) ** 2).sum(axis=2)
    return distances
