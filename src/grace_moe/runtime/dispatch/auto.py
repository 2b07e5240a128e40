"""Flat for tiny batches, hierarchical for the rest, decided alike on every rank by the tokens of all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from grace_moe.cost.transport import FLAT_BYTES, goes_flat
from grace_moe.runtime.dispatch.collectives import TrafficMeter
from grace_moe.runtime.dispatch.flat import FlatDispatcher, FlatState
from grace_moe.runtime.dispatch.hierarchical import HierarchicalDispatcher, HierarchicalState, Splits
from grace_moe.runtime.dispatch.model import Compute, Received, Span
from grace_moe.runtime.dispatch.rank_groups import RankGroups
from grace_moe.runtime.dispatch.route import LayerRoute


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

    def dispatch(
        self, route: LayerRoute, hidden_TH: torch.Tensor, devices_TK: torch.Tensor, slots_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> tuple[Received, FlatState | HierarchicalState]:
        """See `Dispatcher`."""
        splits = self.hierarchical.exchange_splits(devices_TK)
        if self._is_tiny(splits, hidden_TH):
            return self.flat.dispatch_to(hidden_TH, devices_TK, slots_TK, weights_TK, splits.flat_send, splits.flat_receive)
        return self.hierarchical.dispatch(route, hidden_TH, devices_TK, slots_TK, weights_TK, splits)

    def combine(self, partial_RH: torch.Tensor, state: FlatState | HierarchicalState) -> torch.Tensor:
        """See `Dispatcher`."""
        if isinstance(state, FlatState):
            return self.flat.combine(partial_RH, state)
        return self.hierarchical.combine(partial_RH, state)

    def run(
        self,
        route: LayerRoute,
        hidden_TH: torch.Tensor,
        devices_TK: torch.Tensor,
        slots_TK: torch.Tensor,
        weights_TK: torch.Tensor,
        compute: Compute,
        span: Span,
    ) -> torch.Tensor:
        """See `Dispatcher`."""
        with span("dispatch"):
            splits = self.hierarchical.exchange_splits(devices_TK)
        if not self._is_tiny(splits, hidden_TH):
            return self.hierarchical.run(route, hidden_TH, devices_TK, slots_TK, weights_TK, compute, span, splits)
        with span("dispatch"):
            received, state = self.flat.dispatch_to(hidden_TH, devices_TK, slots_TK, weights_TK, splits.flat_send, splits.flat_receive)
        sums = compute(received)
        with span("combine"):
            return self.flat.combine(sums, state)

    def spread(self, rows_TW: torch.Tensor, state: FlatState | HierarchicalState) -> torch.Tensor:
        """See `Dispatcher`."""
        if isinstance(state, FlatState):
            return self.flat.spread(rows_TW, state)
        return self.hierarchical.spread(rows_TW, state)

    def _is_tiny(self, splits: Splits, hidden_TH: torch.Tensor) -> bool:
        topology = self.groups.topology
        hidden_bytes = hidden_TH.shape[1] * hidden_TH.element_size()
        return goes_flat(splits.tokens, topology.num_devices, topology.num_nodes, hidden_bytes, self.flat_bytes)
