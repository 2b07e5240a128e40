"""What a cluster serves, as it goes by: a bounded sample of recent tokens' choices.

The planner needs tokens, not only loads: which experts fire together decides what is sent. The sample is a biased reservoir (Aggarwal
2006): a token that comes in takes the place of a random one, so that ages in the sample fall off exponentially, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grace_moe.adapt.repeats import without_repeats
from grace_moe.errors import MismatchError, UsageError
from grace_moe.trace import RoutingTrace, request_numbers


@dataclass(frozen=True, kw_only=True)
class MonitorOptions:
    """How much a monitor remembers.

    Raises:
        UsageError: on construction, if one is out of range.
    """

    capacity: int = 8192
    """Tokens in the sample: `layers * k * 2` bytes each and 17 more."""
    tokens_per_step: int = 256
    """Most tokens of a step that come into the sample."""

    def __post_init__(self) -> None:
        if self.capacity < 1 or self.tokens_per_step < 1:
            raise UsageError(f"monitor: {self}: capacity and tokens_per_step must be above 0")


class Monitor:
    """Watches one rank's steps. The same steps and seed give the same sample."""

    def __init__(
        self, layer_ids: Sequence[int], num_experts: int, top_k: int, *, options: MonitorOptions | None = None, seed: int = 0
    ) -> None:
        self._layer_ids, self._num_experts = tuple(layer_ids), num_experts
        self._options = MonitorOptions() if options is None else options
        self._random = np.random.default_rng(seed)
        capacity = self._options.capacity
        self._ids = np.empty((capacity, len(self._layer_ids), top_k), np.int16)
        self._requests = np.empty(capacity, np.int64)
        self._phase = np.empty(capacity, np.uint8)
        self._step = np.empty(capacity, np.int64)
        self._held = self._tokens = 0
        self.step = 0
        """Steps observed."""

    @property
    def tokens_per_step(self) -> float:
        """Mean over all steps."""
        return self._tokens / max(1, self.step)

    @property
    def memory_bytes(self) -> int:
        """Of all that is kept; it does not grow."""
        return sum(array.nbytes for array in (self._ids, self._requests, self._phase, self._step))

    def observe(
        self,
        topk_ids: npt.NDArray[np.integer],
        requests: npt.NDArray[np.integer],
        phase: npt.NDArray[np.uint8] | None = None,
        *,
        tokens: int | None = None,
    ) -> None:
        """Take in one step.

        Args:
            topk_ids: `[T, L, k]` choices of the step's tokens, -1 = none.
            requests: `[T]` request of each token.
            phase: `[T]` 0 prefill, 1 decode; None = all prefill.
            tokens: of the whole step, where these are some of them.

        Raises:
            MismatchError: other layers or k than the monitor's.
        """
        if topk_ids.ndim != 3 or topk_ids.shape[1:] != self._ids.shape[1:]:
            layers, top_k = self._ids.shape[1:]
            raise MismatchError(f"a step of choices {topk_ids.shape}, but the monitor watches [tokens, {layers}, {top_k}]")
        taken = self._taken(len(topk_ids))
        places = self._places(len(taken))
        self._ids[places], self._requests[places] = topk_ids[taken], requests[taken]
        self._phase[places], self._step[places] = 0 if phase is None else phase[taken], self.step
        self._tokens += len(topk_ids) if tokens is None else tokens
        self.step += 1

    def sample(self, since: int = 0, model: str = "", *, until: int | None = None) -> RoutingTrace:
        """The sampled tokens in order of steps, to plan on. Requests that repeat one another are one request.

        Args:
            since: first step whose tokens count.
            until: first one whose tokens don't; None = all later ones do.
            model: that serves.
        """
        order = np.argsort(self._step[: self._held], kind="stable")
        ids = self._ids[order]
        requests = without_repeats(ids, self._requests[order])
        step = self._step[order]
        recent = (step >= since) & (step < (self.step if until is None else until))
        return RoutingTrace(
            topk_ids=ids[recent],
            num_experts=self._num_experts,
            layer_ids=self._layer_ids,
            model=model,
            dataset="seen while serving",
            request_ids=request_numbers(requests[recent]),
            phase=self._phase[order[recent]],
            source="traffic",
        )

    def _taken(self, tokens: int) -> npt.NDArray[np.int64]:
        """Tokens of a step that come into the sample."""
        most = min(self._options.tokens_per_step, self._options.capacity)
        return np.arange(tokens) if tokens <= most else np.sort(self._random.choice(tokens, most, replace=False))

    def _places(self, tokens: int) -> npt.NDArray[np.int64]:
        """Where so many tokens go: what is free first, then places of random others."""
        free = min(tokens, self._options.capacity - self._held)
        given_up = self._random.choice(self._options.capacity, tokens - free, replace=False)
        places = np.concatenate([np.arange(self._held, self._held + free), given_up])
        self._held += free
        return places
