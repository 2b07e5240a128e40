"""Hierarchical sparse communication (METHOD.md, HSC): one copy a node over the rails, then one a device inside the node.

source ──stage 1──> ingress device (same local rank on the other node) ──stage 2──> devices of the experts
source <─────────── sum of the node's partial sums <─────────────────────────────── weighted partial sums
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from grace_moe.runtime.dispatch.collectives import RowsOnTheWay, TrafficMeter, exchange_counts, exchange_rows, send_rows
from grace_moe.runtime.dispatch.model import Compute, Received, Span, add_rows, positions, visits
from grace_moe.runtime.dispatch.packing import pack, unpack
from grace_moe.runtime.dispatch.rank_groups import RankGroups
from grace_moe.runtime.dispatch.route import EMPTY_SLOT, LayerRoute

OVERLAP_PAIRS = 80
"""Pairs per slot, over all ranks, from which experts may as well compute in three parts: below, each part reads all weights for few rows,
and costs more than what it lets happen at the same time."""
OVERLAP_PAIRS_ON_CPU = 200
"""The same where experts compute on the cores that move the rows, and parts gain less: a sixth slower at 100, even at 200 (measured)."""


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """One all-to-all: which of the rows at hand each sent row was, and the splits."""

    source_of_row: torch.Tensor
    """int64, per sent row: index of the row it copies."""
    num_rows: int
    """Rows at hand before the stage."""
    send_splits: list[int]
    receive_splits: list[int]


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Rows to and from each rank: of the rail in stage 1, of the node in stage 2. Combine swaps the two."""

    cross_send: list[int]
    cross_receive: list[int]
    own_send: list[int]
    """Of stage 2, for tokens of this node's ranks themselves."""
    own_receive: list[int]
    far_send: list[int]
    """Of stage 2, for tokens that came from other nodes."""
    far_receive: list[int]
    flat_send: list[int]
    """Rows to each rank if tokens went to every device directly."""
    flat_receive: list[int]
    """Rows from each rank then."""
    own_tokens: int
    """Of this rank, with an expert on this node."""
    tokens: int
    """Of all ranks: the same number on each, so that all can decide alike by it."""


@dataclass(frozen=True, kw_only=True)
class _Constants:
    """The topology as tensors."""

    node_of_device: torch.Tensor
    """int64 `[D]`."""
    first_device: torch.Tensor
    """int64 `[N]`."""
    told: torch.Tensor
    """int64: which counts (per device, then per node, then of tokens) each rank is told, rank by rank."""


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Rows at hand before stage 2: hidden states, codes of device and slot on this node (-1 = not here), weights."""

    hidden: torch.Tensor
    codes: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """A dispatch whose stage 1 is on its way."""

    splits: Splits
    width: int
    num_tokens: int
    own: _Rows
    token_of_own_row: torch.Tensor
    token_of_cross_row: torch.Tensor
    crossing: RowsOnTheWay

    def arrived(self) -> _Rows:
        """What stage 1 brought, once it is here."""
        hidden, codes, weights = unpack(self.crossing.wait(), self.own.hidden.dtype, self.own.codes.shape[1])
        return _Rows(hidden=hidden, codes=codes, weights=weights)

    def cross_stage(self) -> _Stage:
        """Stage 1, to be undone."""
        return _Stage(
            source_of_row=self.token_of_cross_row,
            num_rows=self.num_tokens,
            send_splits=self.splits.cross_send,
            receive_splits=self.splits.cross_receive,
        )


@dataclass(frozen=True, kw_only=True)
class HierarchicalState:
    """What `combine` needs to undo `dispatch`."""

    cross: _Stage
    intra: _Stage
    token_of_own_row: torch.Tensor
    """int64: the tokens of this rank with an expert on this node, in the order of stage 2."""


@dataclass(frozen=True, kw_only=True)
class HierarchicalDispatcher:
    """Two stages each way, five collectives: the counts of both stages go in one exchange. Large batches take seven, so that the slow
    ones have company (`run`).

    Rows of stage 1 name the device and slot on the far node by one code: device * width + slot.
    """

    groups: RankGroups
    meter: TrafficMeter
    overlap_pairs: float | None = None
    """Pairs per slot from which `run` computes while rows cross; None = by the kind of device."""

    def dispatch(
        self,
        route: LayerRoute,
        hidden_TH: torch.Tensor,
        devices_TK: torch.Tensor,
        slots_TK: torch.Tensor,
        weights_TK: torch.Tensor,
        splits: Splits | None = None,
    ) -> tuple[Received, HierarchicalState]:
        """Stage 1 sends (node, token) rows to rail peers; stage 2 sends own and arrived rows to devices of this node.

        `splits`: where they have been exchanged already.
        """
        splits = self.exchange_splits(devices_TK) if splits is None else splits
        return self._finish(self._begin(splits, route, hidden_TH, devices_TK, slots_TK, weights_TK))

    def run(
        self,
        route: LayerRoute,
        hidden_TH: torch.Tensor,
        devices_TK: torch.Tensor,
        slots_TK: torch.Tensor,
        weights_TK: torch.Tensor,
        compute: Compute,
        span: Span,
        splits: Splits | None = None,
    ) -> torch.Tensor:
        """Dispatch, compute and combine. Of large batches, half of the node's own rows are computed while rows of other nodes come in,
        and half while their sums go back."""
        with span("dispatch"):
            splits = self.exchange_splits(devices_TK) if splits is None else splits
            begun = self._begin(splits, route, hidden_TH, devices_TK, slots_TK, weights_TK)
            slots = route.slots_width * self.groups.topology.num_devices
            tiny = splits.tokens * devices_TK.shape[1] < self._least_pairs(hidden_TH.device) * slots  # alike on every rank
            in_turn = tiny or self.groups.topology.num_nodes == 1
            if in_turn:
                received, state = self._finish(begun)
        if in_turn:
            sums = compute(received)
            with span("combine"):
                return self.combine(sums, state)
        with span("dispatch"):
            near, near_source = self._inside_node(begun.own, begun.width, splits.own_send, splits.own_receive)
        half = len(near.hidden_RH) // 2
        first_sums = compute(near.rows(slice(None, half)))
        with span("dispatch"):
            arrived = begun.arrived()
            far, far_source = self._inside_node(arrived, begun.width, splits.far_send, splits.far_receive)
        far_sums = compute(far)
        with span("combine"):
            inside = self._back_inside(far_sums, splits.far_send, splits.far_receive)
            ingress = add_rows(inside, far_source, len(arrived.hidden))
            rail = (self.groups.rail_ranks, self.groups.rail, self.meter)
            going_back = send_rows(ingress, splits.cross_receive, splits.cross_send, *rail)
        second_sums = compute(near.rows(slice(half, None)))
        with span("combine"):
            inside = self._back_inside(torch.cat([first_sums, second_sums]), splits.own_send, splits.own_receive)
            own = add_rows(inside, near_source, len(begun.own.hidden))
            return self._at_source(own, going_back.wait(), begun.token_of_own_row, begun.cross_stage())

    def _least_pairs(self, device: torch.device) -> float:
        if self.overlap_pairs is not None:
            return self.overlap_pairs
        return OVERLAP_PAIRS_ON_CPU if device.type == "cpu" else OVERLAP_PAIRS

    def combine(self, partial_RH: torch.Tensor, state: HierarchicalState) -> torch.Tensor:
        """Ingress devices sum their node's partial sums; one row a (token, node) goes back; nodes are summed at the source."""
        groups, intra, cross = self.groups, state.intra, state.cross
        inside = self._back_inside(partial_RH, intra.send_splits, intra.receive_splits)
        summed = add_rows(inside, intra.source_of_row, intra.num_rows)
        own, ingress = torch.split(summed, [len(state.token_of_own_row), sum(cross.receive_splits)])
        back = exchange_rows(ingress, cross.receive_splits, cross.send_splits, groups.rail_ranks, groups.rail, self.meter)
        return self._at_source(own, back, state.token_of_own_row, cross)

    def spread(self, rows_TW: torch.Tensor, state: HierarchicalState) -> torch.Tensor:
        """The ways of `dispatch`, without slots and weights."""
        groups, intra, cross = self.groups, state.intra, state.cross
        away = rows_TW[cross.source_of_row]
        arrived = exchange_rows(away, cross.send_splits, cross.receive_splits, groups.rail_ranks, groups.rail, self.meter)
        inside = torch.cat([rows_TW[state.token_of_own_row], arrived])[intra.source_of_row]
        return exchange_rows(inside, intra.send_splits, intra.receive_splits, groups.node_ranks, groups.node, self.meter)

    def _begin(
        self,
        splits: Splits,
        route: LayerRoute,
        hidden_TH: torch.Tensor,
        devices_TK: torch.Tensor,
        slots_TK: torch.Tensor,
        weights_TK: torch.Tensor,
    ) -> _Begun:
        """Start stage 1: one row a (token, other node). Own rows get ready while those cross."""
        groups, topology, own_node = self.groups, self.groups.topology, self.groups.node_index
        width = route.slots_width
        nodes_TK = self._nodes_of(devices_TK)
        codes_TK = (devices_TK - self._on(devices_TK.device).first_device[nodes_TK.clamp(min=0)]) * width + slots_TK
        reached = visits(nodes_TK, topology.num_nodes)
        _, own = positions(reached[own_node : own_node + 1], splits.own_tokens)
        reached[own_node] = False
        node_of_row, token_of_row = positions(reached, sum(splits.cross_send))
        there = nodes_TK[token_of_row] == node_of_row[:, None]
        rows = pack(hidden_TH, torch.where(there, codes_TK[token_of_row], EMPTY_SLOT), weights_TK, token_of_row)
        crossing = send_rows(rows, splits.cross_send, splits.cross_receive, groups.rail_ranks, groups.rail, self.meter)

        codes = torch.where(nodes_TK[own] == own_node, codes_TK[own], EMPTY_SLOT)
        return _Begun(
            splits=splits,
            width=width,
            num_tokens=len(hidden_TH),
            own=_Rows(hidden=hidden_TH.index_select(0, own), codes=codes, weights=weights_TK[own].to(torch.float32)),
            token_of_own_row=own,
            token_of_cross_row=token_of_row,
            crossing=crossing,
        )

    def _finish(self, begun: _Begun) -> tuple[Received, HierarchicalState]:
        """Stage 2 of all rows at once: own tokens, then what arrived, one row a (row, device)."""
        splits, own, far = begun.splits, begun.own, begun.arrived()
        rows = _Rows(
            hidden=torch.cat([own.hidden, far.hidden]),
            codes=torch.cat([own.codes, far.codes]),
            weights=torch.cat([own.weights, far.weights]),
        )
        send = [a + b for a, b in zip(splits.own_send, splits.far_send, strict=True)]
        receive = [a + b for a, b in zip(splits.own_receive, splits.far_receive, strict=True)]
        received, source_of_row = self._inside_node(rows, begun.width, send, receive)
        intra = _Stage(source_of_row=source_of_row, num_rows=len(rows.hidden), send_splits=send, receive_splits=receive)
        return received, HierarchicalState(cross=begun.cross_stage(), intra=intra, token_of_own_row=begun.token_of_own_row)

    def _nodes_of(self, devices_TK: torch.Tensor) -> torch.Tensor:
        return torch.where(devices_TK >= 0, self._on(devices_TK.device).node_of_device[devices_TK.clamp(min=0)], -1)

    def exchange_splits(self, devices_TK: torch.Tensor) -> Splits:
        """Every split of both stages, from one exchange.

        Each rank tells each other how many of its tokens visit each device of that rank's node, and the node at all, and how many it
        has. An ingress device thus knows what it will forward, and a device what every ingress device forwards to it, before a row moves.
        """
        groups, topology = self.groups, self.groups.topology
        devices_DT = visits(devices_TK, topology.num_devices)
        nodes_NT = visits(self._nodes_of(devices_TK), topology.num_nodes)
        all_tokens = torch.tensor([len(devices_TK)], device=devices_TK.device)
        counts = torch.cat([devices_DT.sum(dim=1), nodes_NT.sum(dim=1), all_tokens])
        ranks, local = range(topology.num_devices), groups.node_ranks
        tell = counts[self._on(counts.device).told]
        told, own = exchange_counts(tell, self._told_splits, len(local) + 2, ranks, groups.world, self.meter, own=counts)
        own_rows_of_node = own[len(ranks) : -1]

        ingress = topology.rail_peers[:, groups.node_index]  # of each source, on this node
        far = topology.node_of_device != groups.node_index
        cross_send = dict.fromkeys(groups.rail_ranks, 0)
        for node, rows in enumerate(own_rows_of_node):
            if node != groups.node_index:
                cross_send[int(topology.rail_peers[groups.rank, node])] += rows
        cross_receive = [told[s][-2] if far[s] and ingress[s] == groups.rank else 0 for s in groups.rail_ranks]
        forwarded = [[sum(told[s][d] for s in ranks if far[s] and ingress[s] == i) for d in range(len(local))] for i in local]
        mine = groups.rank - local.start
        return Splits(
            cross_send=list(cross_send.values()),
            cross_receive=cross_receive,
            own_send=told[groups.rank][: len(local)],
            own_receive=[told[s][mine] for s in local],
            far_send=forwarded[mine],
            far_receive=[row[mine] for row in forwarded],
            flat_send=own[: len(ranks)],
            flat_receive=[row[mine] for row in told],
            own_tokens=own_rows_of_node[groups.node_index],
            tokens=sum(row[-1] for row in told),
        )

    @cached_property
    def _told_splits(self) -> list[int]:
        """How many counts each rank is told: of the devices of its node, of the node, of tokens."""
        return [len(self.groups.topology.devices_of_node(node)) + 2 for node in self.groups.topology.node_of_device.tolist()]

    @cached_property
    def _constants(self) -> dict[torch.device, _Constants]:
        return {}

    def _on(self, device: torch.device) -> _Constants:
        """The topology on a device; made once, so that a step copies nothing to it."""
        if device not in self._constants:
            topology = self.groups.topology
            nodes, tokens = topology.node_of_device.tolist(), topology.num_devices + topology.num_nodes
            told = [i for node in nodes for i in (*topology.devices_of_node(node), topology.num_devices + node, tokens)]
            self._constants[device] = _Constants(
                node_of_device=torch.tensor(nodes, device=device),
                first_device=torch.tensor([topology.devices_of_node(n).start for n in range(topology.num_nodes)], device=device),
                told=torch.tensor(told, device=device),
            )
        return self._constants[device]

    def _inside_node(self, at_hand: _Rows, width: int, send: list[int], receive: list[int]) -> tuple[Received, torch.Tensor]:
        """Stage 2, over the ranks of this node; also which row at hand each sent row was."""
        ranks, codes = self.groups.node_ranks, at_hand.codes
        devices = torch.where(codes >= 0, codes.div(width, rounding_mode="floor"), -1)
        device_of_row, source_of_row = positions(visits(devices, len(ranks)), sum(send))
        here = devices[source_of_row] == device_of_row[:, None]
        slots = torch.where(here, codes[source_of_row] % width, EMPTY_SLOT)
        rows = pack(at_hand.hidden, slots, at_hand.weights, source_of_row)
        arrived = exchange_rows(rows, send, receive, ranks, self.groups.node, self.meter)
        hidden_RH, slots_RK, weights_RK = unpack(arrived, at_hand.hidden.dtype, codes.shape[1])
        return Received(hidden_RH=hidden_RH, slots_RK=slots_RK, weights_RK=weights_RK), source_of_row

    def _back_inside(self, partial_RH: torch.Tensor, send: list[int], receive: list[int]) -> torch.Tensor:
        """Partial sums back over the ranks of this node, against the splits of the way out."""
        return exchange_rows(partial_RH, receive, send, self.groups.node_ranks, self.groups.node, self.meter)

    @staticmethod
    def _at_source(own: torch.Tensor, back: torch.Tensor, token_of_own_row: torch.Tensor, cross: _Stage) -> torch.Tensor:
        """`[T, H]` sum of each token's own node and the others, in this order."""
        return add_rows(own, token_of_own_row, cross.num_rows, (back, cross.source_of_row))
