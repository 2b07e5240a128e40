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
    counts: list[int], peers_in: Sequence[int], ranks: Sequence[int], group: dist.ProcessGroup, meter: TrafficMeter, device: torch.device
) -> list[int]:
    """Tell each peer how many rows will follow; learn how many come.

    Args:
        counts: rows for each rank of the group, in group order; -1 = not a peer, nothing is sent.
        peers_in: positions in the group of the ranks that send a count to this one.
        ranks: global rank of each position.

    Returns:
        rows that come from each rank of the group; 0 from those that are not peers.
    """
    send_splits = [int(c >= 0) for c in counts]
    receive_splits = [int(i in set(peers_in)) for i in range(len(counts))]
    send = torch.tensor([c for c in counts if c >= 0], dtype=torch.int64, device=device)
    receive = torch.empty(sum(receive_splits), dtype=torch.int64, device=device)
    meter.count(ranks, [s * send.element_size() for s in send_splits])
    dist.all_to_all_single(receive, send, receive_splits, send_splits, group=group)
    values = iter(receive.tolist())
    return [int(next(values)) if split else 0 for split in receive_splits]


def exchange_rows(
    rows: torch.Tensor,
    send_splits: list[int],
    receive_splits: list[int],
    ranks: Sequence[int],
    group: dist.ProcessGroup,
    meter: TrafficMeter,
) -> torch.Tensor:
    """All-to-all of whole rows, unequal and zero splits allowed.

    Args:
        rows: `[sum(send_splits), width]`, grouped by destination in group order.

    Returns:
        `[sum(receive_splits), width]`, grouped by source in group order.
    """
    received = rows.new_empty((sum(receive_splits), *rows.shape[1:]))
    row_bytes = rows[0].numel() * rows.element_size() if len(rows) else 0
    meter.count(ranks, [n * row_bytes for n in send_splits])
    dist.all_to_all_single(received, rows.contiguous(), receive_splits, send_splits, group=group)
    return received
