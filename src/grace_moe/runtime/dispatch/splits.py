"""How many rows go to and come from each rank in both stages of the hierarchical dispatch: known from one exchange of counts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from grace_moe.runtime.dispatch.collectives import TrafficMeter, world_channel
from grace_moe.runtime.dispatch.rank_groups import RankGroups
from grace_moe.runtime.dispatch.rows import must_reach


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
class TopologyTensors:
    """The topology on a device."""

    node_of_device: torch.Tensor
    """int64 `[D]`."""
    first_device: torch.Tensor
    """int64 `[N]`."""
    told: torch.Tensor
    """int64: which counts (per device, then per node, then of tokens) each rank is told, rank by rank."""


@dataclass(frozen=True, kw_only=True)
class SplitExchange:
    """Tells the ranks how many rows will follow. Collective."""

    groups: RankGroups
    meter: TrafficMeter

    def exchange(self, devices_TK: torch.Tensor) -> Splits:
        """Every split of both stages, and of a flat dispatch, from one exchange.

        Each rank tells each other how many of its tokens must reach each device of that rank's node, and the node at all, and how many
        it has. An ingress device thus knows what it will forward, and a device what every ingress device forwards to it, before a row
        moves.
        """
        topology, local = self.groups.topology, self.groups.node_ranks
        devices_DT = must_reach(devices_TK, topology.num_devices)
        nodes_NT = must_reach(self.nodes_of(devices_TK), topology.num_nodes)
        all_tokens = torch.tensor([len(devices_TK)], device=devices_TK.device)
        counts = torch.cat([devices_DT.sum(dim=1), nodes_NT.sum(dim=1), all_tokens])
        tell = counts[self.on(counts.device).told]
        world = world_channel(self.groups, self.meter)
        told, own = world.exchange_counts(tell, self._told_splits, len(local) + 2, own=counts)
        return self._splits(told, own)

    def _splits(self, told: list[list[int]], own: list[int]) -> Splits:
        """What follows from the counts: `told` by each rank (devices of this node, the node, tokens), `own` of this rank."""
        groups, topology, local = self.groups, self.groups.topology, self.groups.node_ranks
        ranks = range(topology.num_devices)
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

    def nodes_of(self, devices_TK: torch.Tensor) -> torch.Tensor:
        """`[T, K]` node of each device, -1 where there is none."""
        return torch.where(devices_TK >= 0, self.on(devices_TK.device).node_of_device[devices_TK.clamp(min=0)], -1)

    def on(self, device: torch.device) -> TopologyTensors:
        """The topology on a device; made once, so that a step copies nothing to it."""
        if device not in self._made:
            topology = self.groups.topology
            nodes, tokens = topology.node_of_device.tolist(), topology.num_devices + topology.num_nodes
            told = [i for node in nodes for i in (*topology.devices_of_node(node), topology.num_devices + node, tokens)]
            self._made[device] = TopologyTensors(
                node_of_device=torch.tensor(nodes, device=device),
                first_device=torch.tensor([topology.devices_of_node(n).start for n in range(topology.num_nodes)], device=device),
                told=torch.tensor(told, device=device),
            )
        return self._made[device]

    @cached_property
    def _made(self) -> dict[torch.device, TopologyTensors]:
        return {}

    @cached_property
    def _told_splits(self) -> list[int]:
        """How many counts each rank is told: of the devices of its node, of the node, of tokens."""
        topology = self.groups.topology
        return [len(topology.devices_of_node(node)) + 2 for node in topology.node_of_device.tolist()]
