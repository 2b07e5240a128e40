"""What a cluster serves, as it goes by: loads with exponential forgetting, and a bounded sample of recent tokens' choices.

The planner needs tokens, not only loads: which experts fire together decides what is sent. The sample is a biased reservoir (Aggarwal
2006): a token that comes in takes the place of a random one, so that ages in the sample fall off exponentially, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from grace_moe.errors import MismatchError, UsageError
from grace_moe.trace import RoutingTrace

PHASES = 2
"""Prefill and decode."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class MonitorOptions:
    """How much a monitor remembers.

    Raises:
        UsageError: on construction, if one is out of range.
    """

    half_life: float = 50_000.0
    """Tokens after which a token counts half in the loads."""
    capacity: int = 8192
    """Tokens in the sample: `layers * k * 2` bytes each and 16 more."""
    tokens_per_step: int = 256
    """Most tokens of a step that come into the sample."""

    def __post_init__(self) -> None:
        if not self.half_life > 0 or self.capacity < 1 or self.tokens_per_step < 1:
            raise UsageError(f"monitor: {self}: half_life, capacity and tokens_per_step must be above 0")


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What a monitor knows. L layers, E experts, n tokens in the sample."""

    layer_ids: tuple[int, ...]
    loads: npt.NDArray[np.float64]
    """`[2, L, E]` pairs by phase (prefill, decode), those of a half-life ago counted half."""
    tokens: float
    """Tokens that the loads are of, counted the same way."""
    topk_ids: npt.NDArray[np.int16]
    """`[n, L, k]` choices of the sampled tokens, -1 = none."""
    requests: Ints
    """`[n]`"""
    phase: npt.NDArray[np.uint8]
    """`[n]` 0 prefill, 1 decode."""
    step: Ints
    """`[n]` step in which the token was computed."""

    @property
    def num_experts(self) -> int:
        """Experts of each layer."""
        return int(self.loads.shape[2])

    def since(self, step: int) -> Traffic:
        """With the sampled tokens of this step and later ones only; loads stay as they are."""
        return self._of(self.step >= step)

    def of_half(self, half: int) -> Traffic:
        """With every second request of the sample (half 0 or 1), in order of first appearance."""
        _, first, request = np.unique(self.requests, return_index=True, return_inverse=True)
        number = np.empty(len(first), np.int64)
        number[np.argsort(first, kind="stable")] = np.arange(len(first))
        return self._of(number[request] % 2 == half)

    def _of(self, kept: npt.NDArray[np.bool_]) -> Traffic:
        return replace(self, topk_ids=self.topk_ids[kept], requests=self.requests[kept], phase=self.phase[kept], step=self.step[kept])

    def trace(self, model: str = "") -> RoutingTrace:
        """The sample as a trace, to plan on.

        Args:
            model: that serves.
        """
        _, requests = np.unique(self.requests, return_inverse=True)
        return RoutingTrace(
            topk_ids=self.topk_ids,
            num_experts=self.num_experts,
            layer_ids=self.layer_ids,
            model=model,
            dataset="seen while serving",
            request_ids=requests.astype(np.int32),
            phase=self.phase,
            source="traffic",
        )


class Monitor:
    """Watches one rank's steps. The same steps and seed give the same traffic."""

    def __init__(
        self, layer_ids: Sequence[int], num_experts: int, top_k: int, *, options: MonitorOptions | None = None, seed: int = 0
    ) -> None:
        self._layer_ids = tuple(layer_ids)
        self._options = MonitorOptions() if options is None else options
        self._random = np.random.default_rng(seed)
        layers, capacity = len(self._layer_ids), self._options.capacity
        self._loads = np.zeros((PHASES, layers, num_experts))
        self._tokens = 0.0
        self._ids = np.empty((capacity, layers, top_k), np.int16)
        self._requests = np.empty(capacity, np.int64)
        self._phase = np.empty(capacity, np.uint8)
        self._step = np.empty(capacity, np.int64)
        self._held = 0
        self._all_tokens = 0
        self.step = 0
        """Steps observed."""

    @property
    def tokens_per_step(self) -> float:
        """Mean over all steps."""
        return self._all_tokens / max(1, self.step)

    @property
    def memory_bytes(self) -> int:
        """Of all that is kept; it does not grow."""
        return sum(array.nbytes for array in (self._loads, self._ids, self._requests, self._phase, self._step))

    def observe(
        self, topk_ids: npt.NDArray[np.integer], requests: npt.NDArray[np.integer] | None = None, phase: npt.NDArray[np.uint8] | None = None
    ) -> None:
        """Take in one step.

        Args:
            topk_ids: `[T, L, k]` choices of the step's tokens, -1 = none.
            requests: `[T]` request of each token; None = each token is its own.
            phase: `[T]` 0 prefill, 1 decode; None = all prefill.

        Raises:
            MismatchError: other layers or k than the monitor's.
        """
        if topk_ids.ndim != 3 or topk_ids.shape[1:] != self._ids.shape[1:]:
            layers, top_k = self._ids.shape[1:]
            raise MismatchError(f"a step of choices {topk_ids.shape}, but the monitor watches [tokens, {layers}, {top_k}]")
        tokens = len(topk_ids)
        phase = np.zeros(tokens, np.uint8) if phase is None else phase
        if requests is None:
            requests = -1 - np.arange(self.step * (1 << 20), self.step * (1 << 20) + tokens)
        self._forget(tokens)
        for value in range(PHASES):
            self._add_loads(topk_ids[phase == value], value)
        self._sample(topk_ids, requests, phase)
        self.step += 1

    def observe_loads(self, loads: npt.NDArray[np.float64], tokens: int, phase: int = 0) -> None:
        """Take in a step of which only the pairs of each expert are known: `[L, E]`."""
        self._forget(tokens)
        self._loads[phase] += loads
        self.step += 1

    def traffic(self) -> Traffic:
        """What is known now, in order of steps."""
        order = np.argsort(self._step[: self._held], kind="stable")
        return Traffic(
            layer_ids=self._layer_ids,
            loads=self._loads.copy(),
            tokens=self._tokens,
            topk_ids=self._ids[order],
            requests=self._requests[order],
            phase=self._phase[order],
            step=self._step[order],
        )

    def _forget(self, tokens: int) -> None:
        keep = 0.5 ** (tokens / self._options.half_life)
        self._loads *= keep
        self._tokens = self._tokens * keep + tokens
        self._all_tokens += tokens

    def _add_loads(self, ids: npt.NDArray[np.integer], phase: int) -> None:
        if not len(ids):
            return
        layers, experts = self._loads.shape[1:]
        cells = ids.astype(np.int64) + 1 + (experts + 1) * np.arange(layers)[:, None]  # column 0 = none
        counts = np.bincount(cells.ravel(), minlength=layers * (experts + 1)).reshape(layers, experts + 1)
        self._loads[phase] += counts[:, 1:]

    def _sample(self, ids: npt.NDArray[np.integer], requests: npt.NDArray[np.integer], phase: npt.NDArray[np.uint8]) -> None:
        taken = np.arange(len(ids))
        if len(ids) > self._options.tokens_per_step:
            taken = np.sort(self._random.choice(len(ids), self._options.tokens_per_step, replace=False))
        taken = taken[: self._options.capacity]
        free = min(len(taken), self._options.capacity - self._held)
        given_up = self._random.choice(self._options.capacity, len(taken) - free, replace=False)
        places = np.concatenate([np.arange(self._held, self._held + free), given_up])
        self._ids[places], self._requests[places] = ids[taken], requests[taken]
        self._phase[places], self._step[places] = phase[taken], self.step
        self._held += free


def merged(traffics: Sequence[Traffic]) -> Traffic:
    """What several ranks know, together. Samples are taken whole: ranks of one cluster see about as many tokens.

    Raises:
        MismatchError: they watch different layers or experts.
    """
    first = traffics[0]
    if len({(t.layer_ids, t.loads.shape, t.topk_ids.shape[1:]) for t in traffics}) > 1:
        raise MismatchError("monitors of different models can't be merged; give those of one model's ranks")
    order = np.argsort(np.concatenate([t.step for t in traffics]), kind="stable")
    return Traffic(
        layer_ids=first.layer_ids,
        loads=np.sum([t.loads for t in traffics], axis=0),
        tokens=sum(t.tokens for t in traffics),
        topk_ids=np.concatenate([t.topk_ids for t in traffics])[order],
        requests=np.concatenate([t.requests for t in traffics])[order],
        phase=np.concatenate([t.phase for t in traffics])[order],
        step=np.concatenate([t.step for t in traffics])[order],
    )
