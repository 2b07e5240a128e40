"""Who talks to whom: ranks, their nodes, and the process groups of the two stages."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
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
    rail: dist.ProcessGroup
    """The ranks of this rank's rail, one a node; all ranks where nodes differ in size and rails share devices."""

    @property
    def node_index(self) -> int:
        return int(self.topology.node_of_device[self.rank])

    @property
    def node_ranks(self) -> range:
        """Ranks of this node."""
        return self.topology.devices_of_node(self.node_index)

    @property
    def rail_ranks(self) -> range:
        """Ranks of the rail group, in group order."""
        return _rail(self.topology, self.rank)


def rank_device() -> torch.device:
    """Where this rank computes: an accelerator by local rank, which ranks share where there are fewer, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def message_device() -> torch.device:
    """Where what one rank sends to another lies, and what is gathered of a sharded tensor: gloo takes both from the CPU alone."""
    return torch.device("cpu") if dist.get_backend() == "gloo" else rank_device()


def make_groups(topology: Topology, timeout: timedelta) -> RankGroups:
    """The process groups of a topology; every rank calls it, after `init_process_group`.

    They are built once for each shape of topology: a job that loads one model after another would pile groups up, each with threads.

    Raises:
        MismatchError: the topology has more or fewer devices than there are ranks.
    """
    world_size, rank = dist.get_world_size(), dist.get_rank()
    if topology.num_devices != world_size:
        raise MismatchError(
            f"{topology.source}: nodes: {topology.num_devices} devices for {world_size} ranks; start {topology.num_devices} ranks"
        )
    assert dist.group.WORLD is not None
    key = (dist.group.WORLD, tuple(len(node.devices) for node in topology.nodes), timeout)
    if key not in _BUILT:
        for other in [other for other in _BUILT if other[0] is not dist.group.WORLD]:
            del _BUILT[other]  # of a world that is gone
        _BUILT[key] = _build(topology, rank, timeout)
    node, rail = _BUILT[key]
    return RankGroups(topology=topology, rank=rank, world=dist.group.WORLD, node=node, rail=rail)


_BUILT: dict[tuple[dist.ProcessGroup, tuple[int, ...], timedelta], tuple[dist.ProcessGroup, dist.ProcessGroup]] = {}
"""World, devices of each node, timeout -> the groups of this rank's node and rail."""


def _build(topology: Topology, rank: int, timeout: timedelta) -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
    node = _group_of([topology.devices_of_node(n) for n in range(topology.num_nodes)], rank, timeout)
    per_node = topology.devices_per_node
    rail = _group_of([_rail(topology, r) for r in range(per_node)], rank, timeout) if per_node else dist.group.WORLD
    assert rail is not None
    return node, rail


def _rail(topology: Topology, rank: int) -> range:
    """Ranks of one rail: the same local rank on every node; all ranks where nodes differ in size."""
    per_node = topology.devices_per_node
    return range(rank % per_node, topology.num_devices, per_node) if per_node else range(topology.num_devices)


def _group_of(parts: list[range], rank: int, timeout: timedelta) -> dist.ProcessGroup:
    """The group of this rank among `parts`, which share out the ranks; every rank takes part in making every group."""
    groups = [(dist.new_group(list(ranks), timeout=timeout), rank in ranks) for ranks in parts]
    mine: dist.ProcessGroup = next(group for group, member in groups if member)
    return mine
