"""Hierarchical sparse communication (METHOD.md, HSC): one copy a node over the rails, then one a device inside the node.

source ──stage 1──> ingress device (same local rank on the other node) ──stage 2──> devices of the experts
source <─────────── sum of the node's partial sums <─────────────────────────────── weighted partial sums
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from grace_moe.runtime.collectives import TrafficMeter, exchange_counts, exchange_rows
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
class HierarchicalState:
    """What `combine` needs to undo `dispatch`."""

    cross: _Stage
    intra: _Stage
    token_of_own_row: torch.Tensor
    """int64: the tokens of this rank with an expert on this node, in the order of stage 2."""


@dataclass(frozen=True, kw_only=True)
class HierarchicalDispatcher:
    """Two stages each way. Rows of stage 1 name the device and slot on the far node by one code: device * width + slot."""

    groups: RankGroups
    meter: TrafficMeter

    def dispatch(
        self, route: LayerRoute, hidden_TH: torch.Tensor, devices_TK: torch.Tensor, slots_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> tuple[Received, HierarchicalState]:
        """Stage 1 sends (node, token) rows to rail peers; stage 2 sends own and arrived rows to devices of this node."""
        topology, own_node, width, top_k = self.groups.topology, self.groups.node_index, route.slots_width, devices_TK.shape[1]
        node_of_device = torch.as_tensor(topology.node_of_device, device=devices_TK.device)
        first_device = torch.tensor([topology.devices_of_node(n).start for n in range(topology.num_nodes)], device=devices_TK.device)
        nodes_TK = torch.where(devices_TK >= 0, node_of_device[devices_TK.clamp(min=0)], -1)
        codes_TK = (devices_TK - first_device[nodes_TK.clamp(min=0)]) * width + slots_TK
        reached = visits(nodes_TK, topology.num_nodes)

        # Stage 1: one row a (token, other node).
        away = reached.clone()
        away[own_node] = False
        node_of_row, token_of_row = away.nonzero(as_tuple=True)
        there = nodes_TK[token_of_row] == node_of_row[:, None]
        rows = pack(hidden_TH[token_of_row], torch.where(there, codes_TK[token_of_row], EMPTY_SLOT), weights_TK[token_of_row])
        arrived, cross = self._across_nodes(rows, token_of_row, len(hidden_TH), away.sum(dim=1).tolist())
        far_hidden, far_codes, far_weights = unpack(arrived, hidden_TH.dtype, top_k)

        # Stage 2: own tokens with an expert on this node, then what arrived, one row a (row, device).
        own = reached[own_node].nonzero(as_tuple=True)[0]
        hidden = torch.cat([hidden_TH[own], far_hidden])
        codes = torch.cat([torch.where(nodes_TK[own] == own_node, codes_TK[own], EMPTY_SLOT), far_codes])
        weights = torch.cat([weights_TK[own].to(torch.float32), far_weights])
        received, intra = self._inside_node(hidden, codes, weights, width)
        return received, HierarchicalState(cross=cross, intra=intra, token_of_own_row=own)

    def combine(self, partial_RH: torch.Tensor, state: HierarchicalState) -> torch.Tensor:
        """Ingress devices sum their node's partial sums; one row a (token, node) goes back; nodes are summed at the source."""
        node_ranks, world_ranks = self.groups.node_ranks, range(self.groups.topology.num_devices)
        intra, cross = state.intra, state.cross
        inside = exchange_rows(partial_RH, intra.receive_splits, intra.send_splits, node_ranks, self.groups.node, self.meter)
        summed = add_rows(inside, intra.source_of_row, intra.num_rows)
        own, ingress = torch.split(summed, [len(state.token_of_own_row), sum(cross.receive_splits)])
        back = exchange_rows(ingress, cross.receive_splits, cross.send_splits, world_ranks, self.groups.world, self.meter)
        return add_rows(torch.cat([own, back]), torch.cat([state.token_of_own_row, cross.source_of_row]), cross.num_rows)

    def _across_nodes(
        self, rows: torch.Tensor, token_of_row: torch.Tensor, num_tokens: int, rows_of_node: list[int]
    ) -> tuple[torch.Tensor, _Stage]:
        """Stage 1, over all ranks with zero splits for those that are not rail peers."""
        topology, rank, own_node = self.groups.topology, self.groups.rank, self.groups.node_index
        ranks = range(topology.num_devices)
        counts = [-1] * len(ranks)
        for node, count in enumerate(rows_of_node):
            if node != own_node:
                counts[topology.rail_peers[rank, node]] = count
        peers = [r for r in ranks if topology.node_of_device[r] != own_node and topology.rail_peers[r, own_node] == rank]
        receive = exchange_counts(counts, peers, ranks, self.groups.world, self.meter, rows.device)
        send = [max(c, 0) for c in counts]
        arrived = exchange_rows(rows, send, receive, ranks, self.groups.world, self.meter)
        return arrived, _Stage(source_of_row=token_of_row, num_rows=num_tokens, send_splits=send, receive_splits=receive)

    def _inside_node(self, hidden: torch.Tensor, codes: torch.Tensor, weights: torch.Tensor, width: int) -> tuple[Received, _Stage]:
        """Stage 2, over the ranks of this node."""
        ranks = self.groups.node_ranks
        devices = torch.where(codes >= 0, codes.div(width, rounding_mode="floor"), -1)
        reached = visits(devices, len(ranks))
        device_of_row, source_of_row = reached.nonzero(as_tuple=True)
        here = devices[source_of_row] == device_of_row[:, None]
        rows = pack(hidden[source_of_row], torch.where(here, codes[source_of_row] % width, EMPTY_SLOT), weights[source_of_row])
        counts = reached.sum(dim=1).tolist()
        receive = exchange_counts(counts, range(len(ranks)), ranks, self.groups.node, self.meter, rows.device)
        arrived = exchange_rows(rows, counts, receive, ranks, self.groups.node, self.meter)
        hidden_RH, slots_RK, weights_RK = unpack(arrived, hidden.dtype, codes.shape[1])
        stage = _Stage(source_of_row=source_of_row, num_rows=len(hidden), send_splits=counts, receive_splits=receive)
        return Received(hidden_RH=hidden_RH, slots_RK=slots_RK, weights_RK=weights_RK), stage
