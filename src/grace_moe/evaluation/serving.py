"""How requests are served in a replay: on which device each token comes in, and which tokens are computed together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grace_moe.choice import place_requests
from grace_moe.errors import UsageError
from grace_moe.placement import Placement
from grace_moe.trace import DECODE, RoutingTrace, order_of_requests

PREFILL_BATCH = 1024
"""Tokens of a prefill batch unless said otherwise."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How the replayed cluster serves; the default is round-robin requests, and replicas by the placement's own choice."""

    policy: str | None = None
    """One of `choice.BATCH_POLICIES`, to choose replicas batch by batch; None = by the placement's own choice."""
    batch_tokens: int | None = None
    """Tokens of a prefill batch (None = 1024 with a policy); decode batches are the trace's steps. Given it, or a policy, the
    balance of each batch is measured."""
    first_tokens: int | None = None
    """Send each request to a device of the node that its first so many tokens point to (`choice.place_requests`); None = deal requests
    round-robin over all devices."""

    @property
    def in_batches(self) -> bool:
        """Whether prefill is cut into batches."""
        return self.policy is not None or self.batch_tokens is not None


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """Where each token of a trace comes in, and when."""

    source: Ints
    """`[tokens]` device."""
    steps: Ints | None
    """`[tokens]` decode batch, -1 in prefill; None without decode tokens."""
    batches: Ints | None
    """`[tokens]` batch, prefill's first; None where prefill is not cut into batches."""

    @property
    def decoding(self) -> Ints:
        """Numbers of the decode tokens, ascending."""
        return np.zeros(0, dtype=np.int64) if self.steps is None else np.flatnonzero(self.steps >= 0)


def arrivals(placement: Placement, trace: RoutingTrace, serving: Serving) -> Arrivals:
    """Where and when the trace's tokens come in.

    Raises:
        UsageError: batches of no tokens, or no first tokens.
        MismatchError: first tokens, but the placement carries no costs of sources.
    """
    steps = decode_steps(trace)
    if serving.first_tokens is None:
        source = sources(trace, placement.topology.num_devices)
    else:
        source = place_requests(placement, trace, serving.first_tokens)[order_of_requests(trace)[0]]
    batches = None
    if serving.in_batches:
        batches = number_batches(steps, trace.num_tokens, PREFILL_BATCH if serving.batch_tokens is None else serving.batch_tokens)
    return Arrivals(source=source, steps=steps, batches=batches)


def sources(trace: RoutingTrace, num_devices: int) -> Ints:
    """`[tokens]` source device: requests in order of first appearance, dealt round-robin."""
    return order_of_requests(trace)[0] % num_devices


def decode_steps(trace: RoutingTrace) -> Ints | None:
    """`[tokens]` number of the decode batch (the j-th decode token of every request is in batch j), -1 in prefill."""
    if trace.phase is None or not (trace.phase == DECODE).any():
        return None
    steps = np.full(trace.num_tokens, -1, dtype=np.int64)
    decode = np.flatnonzero(trace.phase == DECODE)
    by_request = decode[np.argsort(trace.requests[decode], kind="stable")]
    starts = np.flatnonzero(np.diff(trace.requests[by_request], prepend=np.iinfo(np.int64).min))
    lengths = np.diff(np.append(starts, len(by_request)))
    steps[by_request] = np.arange(len(by_request)) - np.repeat(starts, lengths)
    return steps


def number_batches(steps: Ints | None, num_tokens: int, batch_tokens: int) -> Ints:
    """`[tokens]` number of each token's batch: prefill cut in the order of the trace, then decode by step.

    Args:
        steps: `[tokens]` decode batch of each token, -1 in prefill; None = all is one phase, cut like prefill.
        batch_tokens: tokens of a prefill batch.

    Raises:
        UsageError: no tokens a batch.
    """
    if batch_tokens < 1:
        raise UsageError(f"batch_tokens {batch_tokens} is out of range; use 1 or more")
    batches = np.full(num_tokens, -1, dtype=np.int64) if steps is None else steps.copy()
    prefill = batches < 0
    cut = np.arange(int(prefill.sum())) // batch_tokens
    batches[~prefill] += int(cut.max(initial=-1)) + 1
    batches[prefill] = cut
    return batches
