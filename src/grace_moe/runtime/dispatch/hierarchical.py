"""Hierarchical sparse communication (METHOD.md, HSC): one copy a node over the rails, then one a device inside the node.

source ──stage 1──> ingress device (same local rank on the other node) ──stage 2──> devices of the experts
source <─────────── sum of the node's partial sums <─────────────────────────────── weighted partial sums
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from grace_moe.runtime.collectives import TrafficMeter, exchange_counts, exchange_rows, send_rows
from grace_moe.runtime.dispatch.model import Received, add_rows, visits
from grace_moe.runtime.dispatch.packing import pack, unpack
from grace_moe.runtime.groups import RankGroups
from grace_moe.runtime.layer import EMPTY_SLOT, LayerRoute


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
class _Splits:
    """Rows to and from each rank: of the rail in stage 1, of the node in stage 2. Combine swaps the two."""

    cross_send: list[int]
    cross_receive: list[int]
    intra_send: list[int]
    intra_receive: list[int]


@dataclass(frozen=True, kw_only=True)
class HierarchicalState:
    """What `combine` needs to undo `dispatch`."""

    cross: _Stage
    intra: _Stage
    token_of_own_row: torch.Tensor
    """int64: the tokens of this rank with an expert on this node, in the order of stage 2."""


@dataclass(frozen=True, kw_only=True)
class HierarchicalDispatcher:
    """Two stages each way, five collectives: the counts of both stages go in one exchange.

    Rows of stage 1 name the device and slot on the far node by one code: device * width + slot.
    """

    groups: RankGroups
    meter: TrafficMeter

    def dispatch(
        self, route: LayerRoute, hidden_TH: torch.Tensor, devices_TK: torch.Tensor, slots_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> tuple[Received, HierarchicalState]:
        """Stage 1 sends (node, token) rows to rail peers; stage 2 sends own and arrived rows to devices of this node."""
        groups, topology, own_node = self.groups, self.groups.topology, self.groups.node_index
        width, top_k = route.slots_width, devices_TK.shape[1]
        node_of_device = torch.as_tensor(topology.node_of_device, device=devices_TK.device)
        first_device = torch.tensor([topology.devices_of_node(n).start for n in range(topology.num_nodes)], device=devices_TK.device)
        nodes_TK = torch.where(devices_TK >= 0, node_of_device[devices_TK.clamp(min=0)], -1)
        codes_TK = (devices_TK - first_device[nodes_TK.clamp(min=0)]) * width + slots_TK
        reached = visits(nodes_TK, topology.num_nodes)
        splits = self._exchange_splits(visits(devices_TK, topology.num_devices), reached)

        # Stage 1: one row a (token, other node).
        away = reached.clone()
        away[own_node] = False
        node_of_row, token_of_row = away.nonzero(as_tuple=True)
        there = nodes_TK[token_of_row] == node_of_row[:, None]
        rows = pack(hidden_TH[token_of_row], torch.where(there, codes_TK[token_of_row], EMPTY_SLOT), weights_TK[token_of_row])
        on_the_way = send_rows(rows, splits.cross_send, splits.cross_receive, groups.rail_ranks, groups.rail, self.meter)

        # Own tokens with an expert on this node get ready while those rows cross.
        own = reached[own_node].nonzero(as_tuple=True)[0]
        own_hidden, own_weights = hidden_TH[own], weights_TK[own].to(torch.float32)
        own_codes = torch.where(nodes_TK[own] == own_node, codes_TK[own], EMPTY_SLOT)
        far_hidden, far_codes, far_weights = unpack(on_the_way.wait(), hidden_TH.dtype, top_k)

        # Stage 2: own tokens, then what arrived, one row a (row, device).
        received, source_of_row = self._inside_node(
            torch.cat([own_hidden, far_hidden]), torch.cat([own_codes, far_codes]), torch.cat([own_weights, far_weights]), width, splits
        )
        cross = _Stage(
            source_of_row=token_of_row, num_rows=len(hidden_TH), send_splits=splits.cross_send, receive_splits=splits.cross_receive
        )
        intra = _Stage(
            source_of_row=source_of_row,
            num_rows=len(own) + len(far_hidden),
            send_splits=splits.intra_send,
            receive_splits=splits.intra_receive,
        )
        return received, HierarchicalState(cross=cross, intra=intra, token_of_own_row=own)

    def combine(self, partial_RH: torch.Tensor, state: HierarchicalState) -> torch.Tensor:
        """Ingress devices sum their node's partial sums; one row a (token, node) goes back; nodes are summed at the source."""
        groups, intra, cross = self.groups, state.intra, state.cross
        inside = exchange_rows(partial_RH, intra.receive_splits, intra.send_splits, groups.node_ranks, groups.node, self.meter)
        summed = add_rows(inside, intra.source_of_row, intra.num_rows)
        own, ingress = torch.split(summed, [len(state.token_of_own_row), sum(cross.receive_splits)])
        back = exchange_rows(ingress, cross.receive_splits, cross.send_splits, groups.rail_ranks, groups.rail, self.meter)
        return add_rows(torch.cat([own, back]), torch.cat([state.token_of_own_row, cross.source_of_row]), cross.num_rows)

    def spread(self, rows_TW: torch.Tensor, state: HierarchicalState) -> torch.Tensor:
        """The ways of `dispatch`, without slots and weights."""
        groups, intra, cross = self.groups, state.intra, state.cross
        away = rows_TW[cross.source_of_row]
        arrived = exchange_rows(away, cross.send_splits, cross.receive_splits, groups.rail_ranks, groups.rail, self.meter)
        inside = torch.cat([rows_TW[state.token_of_own_row], arrived])[intra.source_of_row]
        return exchange_rows(inside, intra.send_splits, intra.receive_splits, groups.node_ranks, groups.node, self.meter)

    def _exchange_splits(self, devices_DT: torch.Tensor, nodes_NT: torch.Tensor) -> _Splits:
        """Every split of both stages, from one exchange.

        Each rank tells each other how many of its tokens visit each device of that rank's node, and the node at all. An
        ingress device thus knows what it will forward, and a device what every ingress device forwards to it, before a row moves.
        """
        groups, topology = self.groups, self.groups.topology
        index, told_splits = self._what_to_tell
        counts = torch.cat([devices_DT.sum(dim=1), nodes_NT.sum(dim=1)])
        own_rows_of_node = counts[len(devices_DT) :].tolist()
        ranks, local = range(topology.num_devices), groups.node_ranks
        told = exchange_counts(counts[index.to(counts.device)], told_splits, len(local) + 1, ranks, groups.world, self.meter)

        ingress = topology.rail_peers[:, groups.node_index]  # of each source, on this node
        far = topology.node_of_device != groups.node_index
        cross_send = dict.fromkeys(groups.rail_ranks, 0)
        for node, rows in enumerate(own_rows_of_node):
            if node != groups.node_index:
                cross_send[int(topology.rail_peers[groups.rank, node])] += rows
        cross_receive = [told[s][-1] if far[s] and ingress[s] == groups.rank else 0 for s in groups.rail_ranks]
        forwarded = [[sum(told[s][d] for s in ranks if ingress[s] == i) for d in range(len(local))] for i in local]
        mine = groups.rank - local.start
        return _Splits(
            cross_send=list(cross_send.values()),
            cross_receive=cross_receive,
            intra_send=forwarded[mine],
            intra_receive=[row[mine] for row in forwarded],
        )

    @cached_property
    def _what_to_tell(self) -> tuple[torch.Tensor, list[int]]:
        """Which counts (per device, then per node) each rank is told, and how many each gets."""
        topology = self.groups.topology
        told = [[*topology.devices_of_node(node), topology.num_devices + node] for node in topology.node_of_device.tolist()]
        return torch.tensor([i for row in told for i in row]), [len(row) for row in told]

    def _inside_node(
        self, hidden: torch.Tensor, codes: torch.Tensor, weights: torch.Tensor, width: int, splits: _Splits
    ) -> tuple[Received, torch.Tensor]:
        """Stage 2, over the ranks of this node; also which row at hand each sent row was."""
        ranks = self.groups.node_ranks
        devices = torch.where(codes >= 0, codes.div(width, rounding_mode="floor"), -1)
        device_of_row, source_of_row = visits(devices, len(ranks)).nonzero(as_tuple=True)
        here = devices[source_of_row] == device_of_row[:, None]
        rows = pack(hidden[source_of_row], torch.where(here, codes[source_of_row] % width, EMPTY_SLOT), weights[source_of_row])
        arrived = exchange_rows(rows, splits.intra_send, splits.intra_receive, ranks, self.groups.node, self.meter)
        hidden_RH, slots_RK, weights_RK = unpack(arrived, hidden.dtype, codes.shape[1])
        return Received(hidden_RH=hidden_RH, slots_RK=slots_RK, weights_RK=weights_RK), source_of_row
