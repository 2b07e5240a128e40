"""Steps of traffic drawn from traces: requests come in by a scenario's shares, and each computes a few tokens a step.

Half of a trace's requests, at random, are what policies see; the other half is what they are measured on. Both follow the same shares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grace_moe.errors import MismatchError, UsageError
from grace_moe.trace import RoutingTrace

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """How the cluster is used.

    Raises:
        UsageError: on construction, if one is out of range.
    """

    steps: int = 400
    requests: int = 64
    """Requests that are computed together."""
    tokens_per_request: int = 8
    """Tokens of a request in a step."""

    def __post_init__(self) -> None:
        if min(self.steps, self.requests, self.tokens_per_request) < 1:
            raise UsageError(f"{self}: use 1 or more of each")

    @property
    def tokens(self) -> int:
        """Of a step, at most."""
        return self.requests * self.tokens_per_request


@dataclass(frozen=True, kw_only=True)
class StepTokens:
    """Tokens of a step: each request has some that follow one another in the pool. R requests, T tokens."""

    first: Ints
    """`[R]` number of a request's first token of the step in the pool."""
    count: Ints
    """`[R]` of its tokens."""
    number: Ints
    """`[R]` of the request, one that no other request of the stream has."""

    @property
    def token(self) -> Ints:
        """`[T]` number of each token in the pool."""
        before = np.cumsum(self.count) - self.count
        return np.repeat(self.first - before, self.count) + np.arange(self.count.sum())

    @property
    def request(self) -> Ints:
        """`[T]` number of each token's request."""
        return np.repeat(self.number, self.count)


class Pool:
    """The tokens that a stream draws from: of several domains, one after another, request by request."""

    def __init__(self, domains: list[RoutingTrace]) -> None:
        first = domains[0]
        for trace in domains[1:]:
            if (trace.num_experts, trace.layer_ids, trace.top_k) != (first.num_experts, first.layer_ids, first.top_k):
                raise MismatchError(f"{trace.source}: another model than that of {first.source}; give traces of one model")
        starts: list[int] = []
        sizes: list[int] = []
        ids, of_domain, offset = [], [], 0
        for trace in domains:
            order = np.argsort(trace.requests, kind="stable")
            _, counts = np.unique(trace.requests, return_counts=True)
            ids.append(trace.topk_ids[order])
            begin = offset + np.cumsum(counts) - counts
            of_domain.append(np.arange(len(starts), len(starts) + len(counts)))
            starts.extend(begin.tolist())
            sizes.extend(counts.tolist())
            offset += len(order)
        self.topk_ids = np.concatenate(ids)
        """`[T, L, k]`"""
        self.starts, self.sizes = np.array(starts), np.array(sizes)
        self.requests_of_domain = of_domain
        """Per domain, numbers of its requests."""


def stream(pool: Pool, weights: npt.NDArray[np.float64], options: StreamOptions, seed: int) -> Iterator[StepTokens]:
    """The tokens of each step.

    Args:
        weights: `[steps, domains]` shares of the requests that come in.
        seed: of the requests that are drawn.
    """
    random = np.random.default_rng([seed, 2])
    width = options.tokens_per_request
    request = np.full(options.requests, -1)  # in the pool
    done = np.zeros(options.requests, np.int64)
    number = np.arange(options.requests)
    for shares in weights:
        free = np.flatnonzero((request < 0) | (done >= pool.sizes[request]))
        for place, domain in zip(free, random.choice(len(shares), size=len(free), p=shares), strict=True):
            request[place] = random.choice(pool.requests_of_domain[domain])
            number[place] += options.requests
            # The first ones are under way, so that they do not all end together.
            first = request[place] >= 0 and number[place] < 2 * options.requests
            done[place] = random.integers(pool.sizes[request[place]]) if first else 0
        left = np.minimum(pool.sizes[request] - done, width)
        yield StepTokens(first=pool.starts[request] + done, count=left, number=number.copy())
        done += left
