"""The two stages of the hierarchical dispatch: rows over the rail, then inside the node.

Rows of stage 1 name the device and slot on the far node by one code: device * width + slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from grace_moe.runtime.dispatch.collectives import Channel, RowsOnTheWay, TrafficMeter, node_channel, rail_channel
from grace_moe.runtime.dispatch.dispatcher import Outgoing, Received
from grace_moe.runtime.dispatch.rank_groups import RankGroups
from grace_moe.runtime.dispatch.route import EMPTY_SLOT
from grace_moe.runtime.dispatch.rows import must_reach, positions
from grace_moe.runtime.dispatch.splits import SplitExchange, Splits
from grace_moe.runtime.dispatch.wire_rows import from_wire, to_wire


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One all-to-all: which of the rows at hand each sent row was, and the splits."""

    source_of_row: torch.Tensor
    """int64, per sent row: index of the row it copies."""
    num_rows: int
    """Rows at hand before the stage."""
    send_splits: list[int]
    receive_splits: list[int]


@dataclass(frozen=True, kw_only=True)
class CodedRows:
    """Rows at hand before stage 2."""

    hidden: torch.Tensor
    codes: torch.Tensor
    """Device and slot on this node, -1 = not here."""
    weights: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A dispatch whose stage 1 is on its way."""

    splits: Splits
    width: int
    num_tokens: int
    own: CodedRows
    token_of_own_row: torch.Tensor
    token_of_cross_row: torch.Tensor
    crossing: RowsOnTheWay

    def arrived(self) -> CodedRows:
        """What stage 1 brought, once it is here."""
        hidden, codes, weights = from_wire(self.crossing.wait(), self.own.hidden.dtype, self.own.codes.shape[1])
        return CodedRows(hidden=hidden, codes=codes, weights=weights)

    def cross_stage(self) -> Stage:
        """Stage 1, to be undone."""
        return Stage(
            source_of_row=self.token_of_cross_row,
            num_rows=self.num_tokens,
            send_splits=self.splits.cross_send,
            receive_splits=self.splits.cross_receive,
        )


@dataclass(frozen=True, kw_only=True)
class TwoStages:
    """Stage 1 over the rail of this rank, stage 2 inside its node."""

    groups: RankGroups
    meter: TrafficMeter

    @cached_property
    def rail(self) -> Channel:
        """Of stage 1."""
        return rail_channel(self.groups, self.meter)

    @cached_property
    def node(self) -> Channel:
        """Of stage 2."""
        return node_channel(self.groups, self.meter)

    @cached_property
    def counts(self) -> SplitExchange:
        """What tells the splits of both."""
        return SplitExchange(groups=self.groups, meter=self.meter)

    def begin(self, outgoing: Outgoing, splits: Splits) -> Begun:
        """Start stage 1: one row a (token, other node). Own rows get ready while those cross."""
        devices_TK, weights_TK, own_node = outgoing.devices_TK, outgoing.weights_TK, self.groups.node_index
        nodes_TK = self.counts.nodes_of(devices_TK)
        first_device = self.counts.on(devices_TK.device).first_device[nodes_TK.clamp(min=0)]
        codes_TK = (devices_TK - first_device) * outgoing.slots_width + outgoing.slots_TK
        reached = must_reach(nodes_TK, self.groups.topology.num_nodes)
        _, own = positions(reached[own_node : own_node + 1], splits.own_tokens)
        reached[own_node] = False
        node_of_row, token_of_row = positions(reached, sum(splits.cross_send))
        there = nodes_TK[token_of_row] == node_of_row[:, None]
        rows = to_wire(outgoing.hidden_TH, torch.where(there, codes_TK[token_of_row], EMPTY_SLOT), weights_TK, token_of_row)
        crossing = self.rail.send_rows(rows, splits.cross_send, splits.cross_receive)

        codes = torch.where(nodes_TK[own] == own_node, codes_TK[own], EMPTY_SLOT)
        return Begun(
            splits=splits,
            width=outgoing.slots_width,
            num_tokens=len(outgoing.hidden_TH),
            own=CodedRows(hidden=outgoing.hidden_TH.index_select(0, own), codes=codes, weights=weights_TK[own].to(torch.float32)),
            token_of_own_row=own,
            token_of_cross_row=token_of_row,
            crossing=crossing,
        )

    def inside_node(self, at_hand: CodedRows, width: int, send: list[int], receive: list[int]) -> tuple[Received, torch.Tensor]:
        """Stage 2, over the ranks of this node; also which row at hand each sent row was."""
        codes = at_hand.codes
        devices = torch.where(codes >= 0, codes.div(width, rounding_mode="floor"), -1)
        device_of_row, source_of_row = positions(must_reach(devices, len(self.node.ranks)), sum(send))
        here = devices[source_of_row] == device_of_row[:, None]
        slots = torch.where(here, codes[source_of_row] % width, EMPTY_SLOT)
        rows = to_wire(at_hand.hidden, slots, at_hand.weights, source_of_row)
        arrived = self.node.exchange_rows(rows, send, receive)
        hidden_RH, slots_RK, weights_RK = from_wire(arrived, at_hand.hidden.dtype, codes.shape[1])
        return Received(hidden_RH=hidden_RH, slots_RK=slots_RK, weights_RK=weights_RK), source_of_row
