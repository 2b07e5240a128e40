"""The adapter of docs/adapt.md inside an engine whose routers can be seen: its steps are the windows between two rearrangements."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grace_moe.adapt import Adapter, AdaptOptions, DecisionOptions, Monitor, MonitorOptions, Prices
from grace_moe.engines.equaliser import Replanned, equalise
from grace_moe.placement import Placement, difference
from grace_moe.trace import RoutingTrace

RECENT_WINDOWS = 2
"""Windows that count as recent: a change comes in the midst of one. Not tuned."""
TOKENS_PER_WINDOW = 2048
"""Most tokens of a window, over all ranks, that come into the monitor's sample: a quarter of it. Not tuned."""
FIRST_REQUESTS = 64
"""Requests that tell what traffic is like when the engine starts. Not tuned."""
LOCAL = 0.1
"""A move inside a node, of the price of one between nodes: as `Prices` has it."""


@dataclass(frozen=True, kw_only=True)
class SeenChoices:
    """What the routers of all ranks chose in a window: a sample of its tokens. T tokens of the sample, L MoE layers."""

    topk_ids: npt.NDArray[np.int16]
    """`[T, L, k]`"""
    requests: npt.NDArray[np.int64]
    """`[T]` request of each token, by any number."""
    tokens: int
    """Of the window, of which these are a sample."""
    move_price: float
    """Copies of a token between nodes that have as many bytes as an expert: `Prices.move`."""


class WindowPolicy:
    """Decides window after window, and begins anew where the ranks that serve are others."""

    def __init__(self) -> None:
        self._adapter: WindowAdapter | None = None

    def next(self, serving: Placement, seen: SeenChoices, most_moves: int) -> Replanned:
        """Take a window in, and decide where it is time to.

        Args:
            serving: the placement that serves; equal slots on every device, as of what is decided.
            seen: of at least one token.
            most_moves: slots that change their expert at most, all layers together.
        """
        if self._adapter is None or self._adapter.serving.topology != serving.topology:
            self._adapter = WindowAdapter(serving, seen, most_moves)
        self._adapter.serving = serving
        return self._adapter.next(seen)


class WindowAdapter:
    """The engine has a plan and not the trace that it was made on: later traffic is compared with that of the first requests."""

    def __init__(self, serving: Placement, seen: SeenChoices, most_moves: int) -> None:
        self.serving = serving
        """The placement that serves; whoever asks sets it."""
        copies = int(serving.slots_per_device().sum())
        prices = Prices(move=seen.move_price, local_move=LOCAL * seen.move_price)
        self._options = AdaptOptions(
            check_every=1,
            recent_steps=RECENT_WINDOWS,
            decision=DecisionOptions(budget=min(1.0, (most_moves + 0.5) / copies), prices=prices),
            monitor=MonitorOptions(tokens_per_step=TOKENS_PER_WINDOW),
        )
        self._first = Monitor(serving.layer_ids, serving.num_experts, seen.topk_ids.shape[2], options=self._options.monitor)
        self._adapter: Adapter | None = None

    def next(self, seen: SeenChoices) -> Replanned:
        """See `WindowPolicy`."""
        stays = Replanned(placement=self.serving, moved=0)
        if self._adapter is None:
            self._first.observe(seen.topk_ids, seen.requests, tokens=seen.tokens)
            before = self._first.sample(model=self.serving.model)
            if len(np.unique(before.requests)) >= FIRST_REQUESTS:
                self._adapter = self._started(before)
            return stays
        self._adapter.serving = self.serving
        self._adapter.monitor.observe(seen.topk_ids, seen.requests, tokens=seen.tokens)
        decision = self._adapter.look()
        if decision is None:
            return stays
        reason = f"traffic has changed; {decision.reason}"
        if decision.placement is None:
            return Replanned(placement=self.serving, moved=0, reason=reason)
        slots = int(self.serving.slots_per_device().max())
        placement = equalise(decision.placement, slots_per_device=slots, two_phases=True).placement
        return Replanned(placement=placement, moved=difference(placement, self.serving).moved, reason=reason)

    def _started(self, before: RoutingTrace) -> Adapter:
        return Adapter(self.serving, before, options=self._options)
