"""Steps of loads drawn from recordings of counts, and what they cost under a placement: balance alone.

A recording of counts is a shard of what a domain's traffic looks like: its requests choose experts as often as the shard says. Half of a
domain's shards are what policies see; the others are what they are measured on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from grace_moe.adapt.by_counts.levelling import shares_of
from grace_moe.adapt.simulate.stream import StreamOptions
from grace_moe.placement import Placement
from grace_moe.trace import LoadProfile

REQUEST_STEPS = 16
"""Steps that a request lasts: counts do not tell. Not tuned: those of 128 tokens, eight a step."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class LoadPool:
    """The shards that a stream draws from, domain by domain."""

    def __init__(self, domains: Sequence[Sequence[LoadProfile]]) -> None:
        profiles = [profile for domain in domains for profile in domain]
        self.shares = np.stack([profile.loads / profile.loads.sum(axis=1, keepdims=True) for profile in profiles])
        """`[shards, L, E]` part of a layer's pairs that each expert gets."""
        ends = np.cumsum([len(domain) for domain in domains])
        self.shards_of_domain = [np.arange(end - len(domain), end) for domain, end in zip(domains, ends, strict=True)]
        """Per domain, numbers of its shards."""


def load_stream(pool: LoadPool, weights: Floats, options: StreamOptions, top_k: int, seed: int) -> Iterator[Ints]:
    """`[L, E]` pairs of each step. A request is of one shard, and its pairs are drawn from that shard's shares.

    Args:
        weights: `[steps, domains]` shares of the requests that come in.
        top_k: experts that a token chooses.
    """
    random = np.random.default_rng([seed, 2])
    shard = np.full(options.requests, -1)
    left = np.zeros(options.requests, np.int64)
    for shares in weights:
        free = np.flatnonzero(left == 0)
        for place, domain in zip(free, random.choice(len(shares), size=len(free), p=shares), strict=True):
            # The first ones are under way, so that they do not all end together.
            left[place] = random.integers(1, REQUEST_STEPS + 1) if shard[place] < 0 else REQUEST_STEPS
            shard[place] = random.choice(pool.shards_of_domain[domain])
        requests = np.bincount(shard, minlength=len(pool.shares)) / options.requests
        yield random.multinomial(options.tokens * top_k, np.tensordot(requests, pool.shares, axes=1))
        left -= 1


class ServedLoads:
    """The busiest device under the placement that serves, replicas by their weights."""

    def __init__(self, placement: Placement) -> None:
        self._known = list(placement.layers)
        self._devices = placement.topology.num_devices
        self._shares = np.stack([shares_of(layer, self._devices) for layer in placement.layers])
        self._speed = placement.topology.relative_speed

    def serve(self, placement: Placement) -> None:
        """Take what the placement changes."""
        for index, layer in enumerate(placement.layers):
            if self._known[index] is not layer:
                self._shares[index], self._known[index] = shares_of(layer, self._devices), layer

    def busiest(self, loads: Ints) -> float:
        """Over the mean, mean over layers, of a step's pairs `[L, E]`."""
        of_device = (loads[:, None, :].astype(float) @ self._shares)[:, 0] / self._speed
        return float((of_device.max(axis=1) / of_device.mean(axis=1)).mean())
