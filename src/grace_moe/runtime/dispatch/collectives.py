"""The one file of the dispatch that calls collectives; it counts what leaves the rank, by tier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist

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


def exchange_counts(
    counts: torch.Tensor,
    send_splits: Sequence[int],
    width: int,
    ranks: Sequence[int],
    group: dist.ProcessGroup,
    meter: TrafficMeter,
    *,
    own: torch.Tensor,
) -> tuple[list[list[int]], list[int]]:
    """Tell every rank what will follow, and learn what comes: the one exchange that every split derives from, and the only time
    that the host waits for the device in a dispatch.

    Args:
        counts: int64 `[sum(send_splits)]`, grouped by the rank that is told, in group order.
        width: counts that each rank tells this one.
        ranks: global rank of each position in the group.
        own: int64 counts that the host wants to know of this rank itself.

    Returns:
        `[ranks][width]` what each rank told; `own` as a list.
    """
    told = counts.new_empty(len(ranks) * width)
    meter.count(ranks, [n * counts.element_size() for n in send_splits])
    dist.all_to_all_single(told, counts, [width] * len(ranks), list(send_splits), group=group)
    known: list[int] = torch.cat([told, own]).tolist()
    return [known[i * width : (i + 1) * width] for i in range(len(ranks))], known[len(told) :]


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


def send_rows(
    rows: torch.Tensor,
    send_splits: list[int],
    receive_splits: list[int],
    ranks: Sequence[int],
    group: dist.ProcessGroup,
    meter: TrafficMeter,
) -> RowsOnTheWay:
    """Start an all-to-all of whole rows, unequal and zero splits allowed; it goes on while the caller works.

    Args:
        rows: `[sum(send_splits), width]`, grouped by destination in group order.
    """
    rows = rows.contiguous()
    if len(ranks) == 1:
        return RowsOnTheWay(sent=rows, received=rows, works=())
    received = rows.new_empty((sum(receive_splits), *rows.shape[1:]))
    row_bytes = rows[0].numel() * rows.element_size() if len(rows) else 0
    meter.count(ranks, [n * row_bytes for n in send_splits])
    if dist.get_backend(group) == "gloo":
        works = _post_receives_first(rows, received, send_splits, receive_splits, ranks, meter.rank, group)
        return RowsOnTheWay(sent=rows, received=received, works=works)
    work = dist.all_to_all_single(received, rows, receive_splits, send_splits, group=group, async_op=True)
    return RowsOnTheWay(sent=rows, received=received, works=(work,))


def _post_receives_first(
    rows: torch.Tensor,
    received: torch.Tensor,
    send_splits: list[int],
    receive_splits: list[int],
    ranks: Sequence[int],
    own_rank: int,
    group: dist.ProcessGroup,
) -> list[dist.Work]:
    """An all-to-all of sends and receives. Gloo tells a peer that it may send over the connection that its own rows take: where a rank
    comes late, its all-to-all sends rows first, and the word that starts the peer's waits behind them, so that the two ways of the
    link work one after the other. Here the word goes first: 0.5 to 0.9 of the time (benchmarks/rails.py)."""
    works: list[dist.Work] = []
    for rank, part in zip(ranks, received.split(receive_splits), strict=True):
        if rank != own_rank and len(part):
            works.append(_under_way(dist.irecv(part, rank, group=group)))
    for rank, part in zip(ranks, rows.split(send_splits), strict=True):
        if rank != own_rank and len(part):
            works.append(_under_way(dist.isend(part, rank, group=group)))
    own = ranks.index(own_rank)
    received.split(receive_splits)[own].copy_(rows.split(send_splits)[own])
    return works


def _under_way(work: dist.Work | None) -> dist.Work:
    assert work is not None, "this rank is not of the group"
    return work


def exchange_rows(
    rows: torch.Tensor,
    send_splits: list[int],
    receive_splits: list[int],
    ranks: Sequence[int],
    group: dist.ProcessGroup,
    meter: TrafficMeter,
) -> torch.Tensor:
    """`send_rows`, and wait for what comes."""
    return send_rows(rows, send_splits, receive_splits, ranks, group, meter).wait()
