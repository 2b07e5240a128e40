"""Flat dispatch with deduplication: one copy of a token to each device that hosts one of its experts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from grace_moe.runtime.dispatch.collectives import Channel, TrafficMeter, world_channel
from grace_moe.runtime.dispatch.dispatcher import Compute, Outgoing, PhaseTimer, Received
from grace_moe.runtime.dispatch.rank_groups import RankGroups
from grace_moe.runtime.dispatch.route import EMPTY_SLOT
from grace_moe.runtime.dispatch.rows import add_rows, must_reach, positions
from grace_moe.runtime.dispatch.wire_rows import from_wire, to_wire


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

    @property
    def _world(self) -> Channel:
        return world_channel(self.groups, self.meter)

    def dispatch(self, outgoing: Outgoing) -> tuple[Received, FlatState]:
        """Rows leave in (device, token) order and arrive in (source, token) order."""
        world = self._world
        counts = must_reach(outgoing.devices_TK, len(world.ranks)).sum(dim=1)
        told, send = world.exchange_counts(counts, [1] * len(world.ranks), 1, own=counts)
        return self.dispatch_to(outgoing, send, [n for (n,) in told])

    def dispatch_to(self, outgoing: Outgoing, send: list[int], receive: list[int]) -> tuple[Received, FlatState]:
        """`dispatch`, where the rows to and from each rank are known."""
        world, devices_TK = self._world, outgoing.devices_TK
        device_of_row, token_of_row = positions(must_reach(devices_TK, len(world.ranks)), sum(send))
        here = devices_TK[token_of_row] == device_of_row[:, None]
        slots_of_row = torch.where(here, outgoing.slots_TK[token_of_row], EMPTY_SLOT)
        arrived = world.exchange_rows(to_wire(outgoing.hidden_TH, slots_of_row, outgoing.weights_TK, token_of_row), send, receive)
        hidden, slots, weights = from_wire(arrived, outgoing.hidden_TH.dtype, outgoing.top_k)
        state = FlatState(token_of_row=token_of_row, num_tokens=len(outgoing.hidden_TH), send_splits=send, receive_splits=receive)
        return Received(hidden_RH=hidden, slots_RK=slots, weights_RK=weights), state

    def combine(self, partial_RH: torch.Tensor, state: FlatState) -> torch.Tensor:
        """One partial sum a (token, device) comes back; devices are summed in ascending order."""
        back = self._world.exchange_rows(partial_RH, state.receive_splits, state.send_splits)
        return add_rows(back, state.token_of_row, state.num_tokens)

    def run(self, outgoing: Outgoing, compute: Compute, timer: PhaseTimer) -> torch.Tensor:
        """One after the other."""
        with timer("dispatch"):
            received, state = self.dispatch(outgoing)
        sums = compute(received)
        with timer("combine"):
            return self.combine(sums, state)

    def spread(self, rows_TW: torch.Tensor, state: FlatState) -> torch.Tensor:
        """The ways of `dispatch`, without slots and weights."""
        return self._world.exchange_rows(rows_TW[state.token_of_row], state.send_splits, state.receive_splits)
