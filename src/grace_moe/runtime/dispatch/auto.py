"""Flat for tiny batches, hierarchical for the rest, decided alike on every rank by the tokens of all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from grace_moe.cost.transport import FLAT_BYTES, goes_flat
from grace_moe.runtime.dispatch.collectives import TrafficMeter
from grace_moe.runtime.dispatch.dispatcher import Compute, Outgoing, PhaseTimer, Received
from grace_moe.runtime.dispatch.flat import FlatDispatcher, FlatState
from grace_moe.runtime.dispatch.hierarchical import HierarchicalDispatcher, HierarchicalState
from grace_moe.runtime.dispatch.rank_groups import RankGroups
from grace_moe.runtime.dispatch.splits import Splits


@dataclass(frozen=True, kw_only=True)
class AutoDispatcher:
    """One exchange of counts serves both ways: three collectives in all, or five (seven where experts compute in between)."""

    groups: RankGroups
    meter: TrafficMeter
    flat_bytes: float = FLAT_BYTES

    @cached_property
    def flat(self) -> FlatDispatcher:
        """For tiny batches."""
        return FlatDispatcher(groups=self.groups, meter=self.meter)

    @cached_property
    def hierarchical(self) -> HierarchicalDispatcher:
        """For the others."""
        return HierarchicalDispatcher(groups=self.groups, meter=self.meter)

    def dispatch(self, outgoing: Outgoing) -> tuple[Received, FlatState | HierarchicalState]:
        """See `Dispatcher`."""
        splits = self._exchange_splits(outgoing)
        if self._is_tiny(splits, outgoing):
            return self.flat.dispatch_to(outgoing, splits.flat_send, splits.flat_receive)
        return self.hierarchical.dispatch(outgoing, splits)

    def combine(self, partial_RH: torch.Tensor, state: FlatState | HierarchicalState) -> torch.Tensor:
        """See `Dispatcher`."""
        if isinstance(state, FlatState):
            return self.flat.combine(partial_RH, state)
        return self.hierarchical.combine(partial_RH, state)

    def run(self, outgoing: Outgoing, compute: Compute, timer: PhaseTimer) -> torch.Tensor:
        """See `Dispatcher`."""
        with timer("dispatch"):
            splits = self._exchange_splits(outgoing)
        if not self._is_tiny(splits, outgoing):
            return self.hierarchical.run(outgoing, compute, timer, splits)
        with timer("dispatch"):
            received, state = self.flat.dispatch_to(outgoing, splits.flat_send, splits.flat_receive)
        sums = compute(received)
        with timer("combine"):
            return self.flat.combine(sums, state)

    def spread(self, rows_TW: torch.Tensor, state: FlatState | HierarchicalState) -> torch.Tensor:
        """See `Dispatcher`."""
        if isinstance(state, FlatState):
            return self.flat.spread(rows_TW, state)
        return self.hierarchical.spread(rows_TW, state)

    def _exchange_splits(self, outgoing: Outgoing) -> Splits:
        return self.hierarchical.stages.counts.exchange(outgoing.devices_TK)

    def _is_tiny(self, splits: Splits, outgoing: Outgoing) -> bool:
        topology, hidden = self.groups.topology, outgoing.hidden_TH
        hidden_bytes = hidden.shape[1] * hidden.element_size()
        return goes_flat(splits.tokens, topology.num_devices, topology.num_nodes, hidden_bytes, self.flat_bytes)
