"""The one file of the dispatch that calls collectives; it counts what leaves the rank, by tier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist

from grace_moe.runtime.dispatch.rank_groups import RankGroups
from grace_moe.topology import Topology


@dataclass(kw_only=True)
class TrafficMeter:
    """Bytes that one rank handed to collectives for other ranks."""

    topology: Topology
    rank: int
    sent: np.ndarray = field(init=False)
    """`[devices]` int64 bytes sent to each rank; what stays on this rank is not counted."""

    def __post_init__(self) -> None:
        self.sent = np.zeros(self.topology.num_devices, dtype=np.int64)

    def count(self, ranks: Sequence[int], bytes_per_rank: Sequence[int]) -> None:
        """Add what one collective sends to each of `ranks`."""
        for rank, size in zip(ranks, bytes_per_rank, strict=True):
            if rank != self.rank:
                self.sent[rank] += size

    def reset(self) -> None:
        """Forget what was counted."""
        self.sent[:] = 0

    @property
    def cross_node_bytes(self) -> int:
        """Sent to other nodes."""
        node = self.topology.node_of_device
        return int(self.sent[node != node[self.rank]].sum())

    @property
    def intra_node_bytes(self) -> int:
        """Sent to other devices of this node."""
        node = self.topology.node_of_device
        return int(self.sent[node == node[self.rank]].sum())


@dataclass(frozen=True, kw_only=True)
class RowsOnTheWay:
    """Rows of an all-to-all that may still be in flight."""

    sent: torch.Tensor
    """Held until they have left."""
    received: torch.Tensor
    works: Sequence[dist.Work]

    def wait(self) -> torch.Tensor:
        """`[sum(receive_splits), width]`, grouped by source in group order; once they are all here."""
        for work in self.works:
            work.wait()
        return self.received


@dataclass(frozen=True, kw_only=True)
class Channel:
    """Some ranks that exchange rows, and the meter that counts what this rank hands over."""

    ranks: Sequence[int]
    """Global rank of each position in the group."""
    group: dist.ProcessGroup
    meter: TrafficMeter

    def exchange_counts(
        self, counts: torch.Tensor, send_splits: Sequence[int], width: int, *, own: torch.Tensor
    ) -> tuple[list[list[int]], list[int]]:
        """Tell every rank what will follow, and learn what comes: the one exchange that every split derives from, and the only time
        that the host waits for the device in a dispatch.

        Args:
            counts: int64 `[sum(send_splits)]`, grouped by the rank that is told, in group order.
            width: counts that each rank tells this one.
            own: int64 counts that the host wants to know of this rank itself.

        Returns:
            `[ranks][width]` what each rank told; `own` as a list.
        """
        told = counts.new_empty(len(self.ranks) * width)
        self.meter.count(self.ranks, [n * counts.element_size() for n in send_splits])
        dist.all_to_all_single(told, counts, [width] * len(self.ranks), list(send_splits), group=self.group)
        known: list[int] = torch.cat([told, own]).tolist()
        return [known[i * width : (i + 1) * width] for i in range(len(self.ranks))], known[len(told) :]

    def send_rows(self, rows: torch.Tensor, send_splits: list[int], receive_splits: list[int]) -> RowsOnTheWay:
        """Start an all-to-all of whole rows, unequal and zero splits allowed; it goes on while the caller works.

        Args:
            rows: `[sum(send_splits), width]`, grouped by destination in group order.
        """
        rows = rows.contiguous()
        if len(self.ranks) == 1:
            return RowsOnTheWay(sent=rows, received=rows, works=())
        received = rows.new_empty((sum(receive_splits), *rows.shape[1:]))
        row_bytes = rows[0].numel() * rows.element_size() if len(rows) else 0
        self.meter.count(self.ranks, [n * row_bytes for n in send_splits])
        if dist.get_backend(self.group) == "gloo" and rows.device.type == "cpu":  # it takes those of a GPU in collectives alone
            works = self._post_receives_first(rows.split(send_splits), received.split(receive_splits))
            return RowsOnTheWay(sent=rows, received=received, works=works)
        work = dist.all_to_all_single(received, rows, receive_splits, send_splits, group=self.group, async_op=True)
        return RowsOnTheWay(sent=rows, received=received, works=(work,))

    def exchange_rows(self, rows: torch.Tensor, send_splits: list[int], receive_splits: list[int]) -> torch.Tensor:
        """`send_rows`, and wait for what comes."""
        return self.send_rows(rows, send_splits, receive_splits).wait()

    def _post_receives_first(self, to_send: Sequence[torch.Tensor], to_receive: Sequence[torch.Tensor]) -> list[dist.Work]:
        """An all-to-all of sends and receives, one part a rank.

        With gloo, a receiver grants its peer the right to send, on the connection that also carries its own rows. In a plain all-to-all
        a late rank queues its rows before the grant. The peer then waits for all of them, and the two directions of the link work one
        after the other. Here receives are posted first, so the grant goes first: 0.5 to 0.9 of the time (benchmarks/rails.py).
        """
        works: list[dist.Work] = []
        for rank, part in zip(self.ranks, to_receive, strict=True):
            if rank != self.meter.rank and len(part):
                works.append(_under_way(dist.irecv(part, rank, group=self.group)))
        for rank, part in zip(self.ranks, to_send, strict=True):
            if rank != self.meter.rank and len(part):
                works.append(_under_way(dist.isend(part, rank, group=self.group)))
        own = self.ranks.index(self.meter.rank)
        to_receive[own].copy_(to_send[own])
        return works


def _under_way(work: dist.Work | None) -> dist.Work:
    assert work is not None, "this rank is not of the group"
    return work


def world_channel(groups: RankGroups, meter: TrafficMeter) -> Channel:
    """Of all ranks."""
    return Channel(ranks=range(groups.topology.num_devices), group=groups.world, meter=meter)


def node_channel(groups: RankGroups, meter: TrafficMeter) -> Channel:
    """Of the ranks of this node."""
    return Channel(ranks=groups.node_ranks, group=groups.node, meter=meter)


def rail_channel(groups: RankGroups, meter: TrafficMeter) -> Channel:
    """Of the ranks of this rank's rail."""
    return Channel(ranks=groups.rail_ranks, group=groups.rail, meter=meter)


def is_communication_error(error: BaseException) -> bool:
    """Whether a collective failed for want of another rank: torch raises RuntimeError for that, and tells it in words only."""
    words = ("gloo", "NCCL", "onnection", "imed out", "timeout", "Socket", "store")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
