"""Who talks to whom: ranks, their nodes, and the process groups of the two stages."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from grace_moe.errors import MismatchError
from grace_moe.topology import Topology


@dataclass(frozen=True, kw_only=True)
class RankGroups:
    """One rank's view of the expert-parallel group; rank r is device r of the topology."""

    topology: Topology
    rank: int
    world: dist.ProcessGroup
    """All ranks."""
    node: dist.ProcessGroup
    """The ranks of this rank's node."""

    @property
    def node_index(self) -> int:
        return int(self.topology.node_of_device[self.rank])

    @property
    def node_ranks(self) -> range:
        """Ranks of this node."""
        return self.topology.devices_of_node(self.node_index)


def make_groups(topology: Topology, timeout: timedelta) -> RankGroups:
    """Build the process groups; every rank calls it once, after `init_process_group`.

    Raises:
        MismatchError: the topology has more or fewer devices than there are ranks.
    """
    world_size, rank = dist.get_world_size(), dist.get_rank()
    if topology.num_devices != world_size:
        raise MismatchError(
            f"{topology.source}: nodes: {topology.num_devices} devices for {world_size} ranks; start {topology.num_devices} ranks"
        )
    mine = None
    for node in range(topology.num_nodes):  # every rank takes part in making every group
        group = dist.new_group(list(topology.devices_of_node(node)), timeout=timeout)
        if rank in topology.devices_of_node(node):
            mine = group
    assert dist.group.WORLD is not None
    assert mine is not None
    return RankGroups(topology=topology, rank=rank, world=dist.group.WORLD, node=mine)
