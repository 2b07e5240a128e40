"""Hierarchical dispatch for an engine's own expert-parallel group: one copy of a token a node, then one a rank inside the node, and back.

The runtime has its own (docs/runtime.md), which draws counts, rows and overlap together around a placement. This one takes what an engine
has: physical slots, and one process group, over which the splits to all ranks that a stage doesn't reach are zero. Needs gloo or NCCL, and
no kernel of its own.

Shape letters: T tokens of this rank, K top-k, H hidden size, W ranks, N nodes, R rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist

from grace_moe.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Tokens under way: `[R, H]` hidden, `[R, K]` slots of all ranks and routing weights."""

    hidden: torch.Tensor
    slots: torch.Tensor
    weights: torch.Tensor

    def packed(self, which: torch.Tensor) -> torch.Tensor:
        """Some rows as bytes, so that one collective takes all three."""
        parts = (self.hidden, self.slots.to(torch.int32), self.weights.to(torch.float32))
        return torch.cat([part.index_select(0, which).contiguous().view(torch.uint8) for part in parts], dim=1)

    def unpacked(self, bytes_: torch.Tensor) -> Rows:
        """What came, in the types of these rows."""
        hidden, slots = self.hidden.shape[1] * self.hidden.element_size(), 4 * self.slots.shape[1]
        parts = bytes_.split([hidden, slots, slots], dim=1)
        types = (self.hidden.dtype, torch.int32, torch.float32)
        one, two, three = (part.clone(memory_format=torch.contiguous_format).view(dtype) for part, dtype in zip(parts, types, strict=True))
        return Rows(hidden=one, slots=two.to(self.slots.dtype), weights=three.to(self.weights.dtype))


@dataclass(frozen=True, kw_only=True)
class Sending:
    """One stage: which of the rows at hand each sent row was, and how many go to and came from each rank."""

    source: torch.Tensor
    """int64, per sent row."""
    rows: int
    """At hand before."""
    to: list[int]
    came: list[int]


@dataclass(kw_only=True)
class Sent:
    """What one layer sent for its tokens since it was last reset."""

    tokens: int = 0
    counts: torch.Tensor
    """int64 `[2]`: (token, other node) copies, and (token, expert) pairs on other nodes, which a dispatch by pairs would send."""

    def to_dict(self) -> dict[str, int]:
        """Of this rank."""
        copies, pairs = self.counts.tolist()
        return {"tokens": self.tokens, "copies": copies, "pairs": pairs}


@dataclass(kw_only=True)
class TwoStages:
    """One layer's dispatch on one rank. `combine` undoes the last `dispatch`."""

    group: dist.ProcessGroup
    topology: Topology
    """Rank r is its device r."""
    rank: int
    slots_per_rank: int
    device: torch.device
    sent: Sent = field(init=False)
    _node_of_rank: torch.Tensor = field(init=False, repr=False)
    _node: int = field(init=False, repr=False)
    _ingress: list[int] = field(init=False, repr=False)
    """Of each node, the rank that takes in this one's tokens; this rank itself for its own."""
    _inside: range = field(init=False, repr=False)
    """Ranks of this node."""
    _stages: tuple[Sending, Sending] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.sent = Sent(counts=torch.zeros(2, dtype=torch.int64, device=self.device))
        self._node_of_rank = torch.as_tensor(self.topology.node_of_device, dtype=torch.int64, device=self.device)
        self._node = int(self.topology.node_of_device[self.rank])
        self._ingress = self.topology.rail_peer(np.array(self.rank), np.arange(self.topology.num_nodes)).tolist()
        self._inside = self.topology.devices_of_node(self._node)

    def dispatch(self, rows: Rows, real: int) -> Rows:
        """The rows that this rank computes: of all ranks' tokens with a slot here. Collective, also with T = 0.

        Args:
            rows: this rank's tokens; slot -1 = none.
            real: tokens to be counted, the first so many; the rest pad.
        """
        ranks = self._ranks(rows.slots)
        nodes = torch.where(ranks < 0, -1, self._node_of_rank[ranks.clamp(min=0)])
        reached = _reached(nodes, self.topology.num_nodes)
        self._count(reached, nodes, real)
        arrived, first = self._send(rows, reached, self._ingress)
        here_of = _reached(self._ranks(arrived.slots) - self._inside.start, len(self._inside))
        here, second = self._send(arrived, here_of, list(self._inside))
        self._stages = (first, second)
        return here

    def combine(self, sums: torch.Tensor) -> torch.Tensor:
        """`[T, H]` of `[R, H]` weighted sums over the slots of this rank: added up inside the node, then over nodes, in float32."""
        assert self._stages is not None, "nothing was dispatched"
        for stage in reversed(self._stages):
            back = self._exchange(sums, stage.came, stage.to)
            whole = torch.zeros((stage.rows, sums.shape[1]), dtype=torch.float32, device=sums.device)
            sums = whole.index_add_(0, stage.source, back.to(torch.float32)).to(sums.dtype)
        self._stages = None
        return sums

    def _ranks(self, slots: torch.Tensor) -> torch.Tensor:
        return torch.where(slots < 0, -1, slots.to(torch.int64).div(self.slots_per_rank, rounding_mode="floor"))

    def _count(self, reached: torch.Tensor, nodes: torch.Tensor, real: int) -> None:
        self.sent.tokens += real
        others = reached[:, :real].sum() - reached[self._node, :real].sum()
        pairs = ((nodes[:real] >= 0) & (nodes[:real] != self._node)).sum()
        self.sent.counts += torch.stack([others, pairs])

    def _send(self, rows: Rows, reached: torch.Tensor, ranks: list[int]) -> tuple[Rows, Sending]:
        """A copy of each row to those of `ranks` that it reaches: `[ranks, R]`."""
        source = reached.nonzero()[:, 1]
        numbers = torch.zeros(self.topology.num_devices, dtype=torch.int64, device=self.device)
        numbers[ranks] = reached.sum(dim=1)
        told = torch.empty_like(numbers)
        dist.all_to_all_single(told, numbers, group=self.group)
        to, came = torch.stack([numbers, told]).tolist()  # the one time a stage that the host waits
        arrived = rows.unpacked(self._exchange(rows.packed(source), to, came))
        return arrived, Sending(source=source, rows=len(rows.hidden), to=to, came=came)

    def _exchange(self, rows: torch.Tensor, to: list[int], came: list[int]) -> torch.Tensor:
        received = rows.new_empty((sum(came), rows.shape[1]))
        dist.all_to_all_single(received, rows.contiguous(), came, to, group=self.group)
        return received


def _reached(places: torch.Tensor, number: int) -> torch.Tensor:
    """`[number, R]` whether a row has any of its `[R, K]` places there; places outside 0..number-1 are nowhere."""
    inside = torch.where((places >= 0) & (places < number), places, number)
    reached = torch.zeros((len(places), number + 1), dtype=torch.bool, device=places.device)
    return reached.scatter_(1, inside, True)[:, :number].T.contiguous()
