"""Flat dispatch with deduplication: one copy of a token to each device that hosts one of its experts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from grace_moe.runtime.dispatch.collectives import TrafficMeter, exchange_counts, exchange_rows
from grace_moe.runtime.dispatch.model import Compute, Received, Span, add_rows, positions, visits
from grace_moe.runtime.dispatch.packing import pack, unpack
from grace_moe.runtime.dispatch.rank_groups import RankGroups
from grace_moe.runtime.dispatch.route import EMPTY_SLOT, LayerRoute


@dataclass(frozen=True, kw_only=True)
class FlatState:
    """What `combine` needs to undo `dispatch`."""

    token_of_row: torch.Tensor
    """int64, per sent row (device-major): its token."""
    num_tokens: int
    send_splits: list[int]
    receive_splits: list[int]


@dataclass(frozen=True, kw_only=True)
class FlatDispatcher:
    """Occult's collective shape: dispatch once a device, pre-aggregate there, one row back."""

    groups: RankGroups
    meter: TrafficMeter

    def dispatch(
        self, route: LayerRoute, hidden_TH: torch.Tensor, devices_TK: torch.Tensor, slots_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> tuple[Received, FlatState]:
        """Rows leave in (device, token) order and arrive in (source, token) order."""
        ranks = range(self.groups.topology.num_devices)
        counts = visits(devices_TK, len(ranks)).sum(dim=1)
        told, send = exchange_counts(counts, [1] * len(ranks), 1, ranks, self.groups.world, self.meter, own=counts)
        return self.dispatch_to(hidden_TH, devices_TK, slots_TK, weights_TK, send, [n for (n,) in told])

    def dispatch_to(
        self,
        hidden_TH: torch.Tensor,
        devices_TK: torch.Tensor,
        slots_TK: torch.Tensor,
        weights_TK: torch.Tensor,
        send: list[int],
        receive: list[int],
    ) -> tuple[Received, FlatState]:
        """`dispatch`, where the rows to and from each rank are known."""
        ranks = range(self.groups.topology.num_devices)
        device_of_row, token_of_row = positions(visits(devices_TK, len(ranks)), sum(send))
        here = devices_TK[token_of_row] == device_of_row[:, None]
        rows = pack(hidden_TH, torch.where(here, slots_TK[token_of_row], EMPTY_SLOT), weights_TK, token_of_row)
        arrived = exchange_rows(rows, send, receive, ranks, self.groups.world, self.meter)
        hidden, slots, weights = unpack(arrived, hidden_TH.dtype, devices_TK.shape[1])
        state = FlatState(token_of_row=token_of_row, num_tokens=len(hidden_TH), send_splits=send, receive_splits=receive)
        return Received(hidden_RH=hidden, slots_RK=slots, weights_RK=weights), state

    def combine(self, partial_RH: torch.Tensor, state: FlatState) -> torch.Tensor:
        """One partial sum a (token, device) comes back; devices are summed in ascending order."""
        ranks = range(self.groups.topology.num_devices)
        back = exchange_rows(partial_RH, state.receive_splits, state.send_splits, ranks, self.groups.world, self.meter)
        return add_rows(back, state.token_of_row, state.num_tokens)

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
        """One after the other."""
        with span("dispatch"):
            received, state = self.dispatch(route, hidden_TH, devices_TK, slots_TK, weights_TK)
        sums = compute(received)
        with span("combine"):
            return self.combine(sums, state)

    def spread(self, rows_TW: torch.Tensor, state: FlatState) -> torch.Tensor:
        """The ways of `dispatch`, without slots and weights."""
        ranks, rows = range(self.groups.topology.num_devices), rows_TW[state.token_of_row]
        return exchange_rows(rows, state.send_splits, state.receive_splits, ranks, self.groups.world, self.meter)
