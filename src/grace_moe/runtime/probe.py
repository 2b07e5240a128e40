"""Bandwidth and latency between ranks, by messages of the job's own process group (docs/discover.md#how-it-measures)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from grace_moe.discover.declared import Declaration
from grace_moe.discover.finding import Discovery, discover, topology_of
from grace_moe.discover.launcher import declared_by_launcher, declared_by_machine, wrong_sizes
from grace_moe.discover.link_kinds import nvml_link_kinds
from grace_moe.discover.measured import Measured, filled, pairs_to_measure, rounds_of
from grace_moe.discover.rank_facts import RankFacts, facts_of_this_rank
from grace_moe.discover.reading import Declared, declarations_of
from grace_moe.discover.tiers import FoundTier
from grace_moe.errors import UsageError
from grace_moe.runtime.dispatch.rank_groups import rank_device
from grace_moe.runtime.job.ranks import Membership
from grace_moe.topology import Topology

MOST_PAIRS = 2048
"""Pairs that are measured one by one; of more, one of every two machines stands for the others."""
_PINGS = 21
_FIRST_BYTES, _MOST_BYTES = 128 * 2**10, 2**28
_LONG_ENOUGH_S = 0.012
"""A message that takes so long is large enough: twice as large ones are measured beside it."""
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 8
_STABLE = 0.03
"""The two fastest of a message differ by less: it is measured."""
_SHARED = 0.8
"""Of what devices send alone; less together, and they share the link."""
_SAMPLES = 3
"""Pairs of nodes on which sharing is measured."""


def discover_together(
    member: Membership, declared: Sequence[Declared], on_round: Callable[[int, int], None] | None = None
) -> tuple[Discovery, Topology]:
    """Measure all links, and compare them with what is declared. Collective: every rank gets the same, but for what is declared.

    Args:
        declared: beside what launcher and machine declare; rank 0's counts.
        on_round: told how many rounds are done, of how many.

    Raises:
        UsageError: there is one rank alone.
        TopologyError: what is declared is of other ranks.
    """
    if member.world_size < 2:
        raise UsageError("--nproc-per-node: one rank has no links; start two or more")
    probe = Probe(rank=member.rank, world_size=member.world_size)
    facts = probe.facts()
    declarations = _declarations(declared, facts)
    measured = probe.measure([fact.machine for fact in facts], on_round or _unheard)
    found = discover(measured, declarations, wrong_sizes(facts))
    shared = probe.shared(found.tiers, _agreed_node(found))
    return found, topology_of(found, measured, facts, shared)


def _agreed_node(found: Discovery) -> int:
    """Which tier is that inside nodes, as rank 0 has it, who knows what is declared. Collective."""
    told = torch.tensor([found.node], device=rank_device())
    dist.broadcast(told, 0)
    return int(told.item())


def _declarations(declared: Sequence[Declared], facts: Sequence[RankFacts]) -> list[Declaration]:
    """Of launcher, machine, NVML where it is there, and what was given."""
    asked = nvml_link_kinds()
    found = declared_by_launcher(facts) + declared_by_machine(facts)
    for one in [*([] if asked is None else [asked]), *declared]:
        found += declarations_of(one, facts)
    return found


def _unheard(done: int, total: int) -> None:
    """Nobody wants to know."""


@dataclass(kw_only=True)
class Probe:
    """This rank's end of the measurements. All ranks call the same methods in the same order."""

    rank: int
    world_size: int
    device: torch.device = field(default_factory=rank_device)
    _buffers: dict[int, torch.Tensor] = field(default_factory=dict)

    def facts(self) -> tuple[RankFacts, ...]:
        """What every rank knows of itself. Collective."""
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, _own_facts(self.device))
        return tuple(found)

    def measure(self, machines: list[str], on_round: Callable[[int, int], None] = lambda done, total: None) -> Measured:
        """Every pair, in rounds in which no machine has two. Collective: all ranks get all of it.

        Args:
            machines: of each rank, its machine.
            on_round: told how many rounds are done, of how many.
        """
        pairs = pairs_to_measure(machines, MOST_PAIRS)
        rounds = rounds_of(pairs, machines)
        mine: list[tuple[int, int, float, float]] = []
        for number, together in enumerate(rounds):
            for pair in together:
                if self.rank in pair:
                    mine.append(self._pair(pair))
            dist.barrier()
            on_round(number + 1, len(rounds))
        everyone: list[Any] = [None] * self.world_size
        dist.all_gather_object(everyone, mine)
        rows = [row for rank in everyone for row in rank]
        bandwidth = filled({(sender, receiver): value for sender, receiver, value, _ in rows}, machines)
        latency = filled({(sender, receiver): value for sender, receiver, _, value in rows}, machines)
        latency = (latency + latency.T) / 2
        np.fill_diagonal(bandwidth, np.inf)
        np.fill_diagonal(latency, 0.0)
        return Measured(bandwidth=bandwidth, latency_s=latency, num_measured=len(pairs))

    def shared(self, tiers: Sequence[FoundTier], node: int) -> dict[int, float]:
        """By tier, bytes per second that all ranks of a node send over it together, where that is less than each alone. Collective."""
        nodes = tiers[node].groups
        found = {}
        for number in range(node + 1, len(tiers)):
            tier = tiers[number]
            apart = [(a, b) for a in nodes for b in nodes if len(a) > 1 and tier.pairs[a[0], b[0]]]
            step = max(1, len(apart) // _SAMPLES)
            together, alone = [], []
            for a, b in apart[::step][:_SAMPLES]:
                links = [(sender, b[at % len(b)]) for at, sender in enumerate(a)]
                together.append(self._together(links, tier.bandwidth))
                alone.append(len(a) * tier.bandwidth)
            if together and np.median(together) < _SHARED * np.median(alone):
                found[number] = float(np.median(together))
        return found

    def _pair(self, pair: tuple[int, int]) -> tuple[int, int, float, float]:
        """(this rank, the other, bandwidth from this rank to the other, latency)."""
        other = pair[1] if self.rank == pair[0] else pair[0]
        first = self.rank == pair[0]
        for sending in (first, not first):  # a connection's first message takes longer
            self._message(other, _FIRST_BYTES, sending)
        latency = bandwidth = 0.0
        for sending in (first, not first):
            pings = [self._message(other, 1, sending) for _ in range(_PINGS)]
            rate = self._bandwidth(other, sending)
            if sending:
                latency, bandwidth = float(np.median(pings)) / 2, rate
        return self.rank, other, bandwidth, latency

    def _bandwidth(self, other: int, sending: bool) -> float:
        """Of messages of two sizes the slope: what a message costs whatever its size falls out. The sender decides how large and how often."""
        size = _FIRST_BYTES
        while self._agreed(other, sending, self._message(other, size, sending) < _LONG_ENOUGH_S and size < _MOST_BYTES // 2):
            size *= 2
        small: list[float] = []
        large: list[float] = []
        while self._agreed(other, sending, not _settled(small) or not _settled(large)):
            small.append(self._message(other, size, sending))
            large.append(self._message(other, 2 * size, sending))
        longer = min(large) - min(small)
        return size / longer if longer > 0 else 2 * size / min(large)

    def _agreed(self, other: int, sending: bool, wish: bool) -> bool:
        """The sender's wish, on both ends."""
        told = torch.tensor([int(wish)], device=self.device)
        if sending:
            dist.send(told, other)
        else:
            dist.recv(told, other)
        return bool(told.item())

    def _message(self, other: int, size: int, sending: bool) -> float:
        """Seconds from the start until the other has said that all is there."""
        began = time.perf_counter()
        if sending:
            dist.send(self._buffer(size), other)
            dist.recv(self._buffer(1), other)
        else:
            dist.recv(self._buffer(size), other)
            dist.send(self._buffer(1), other)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - began

    def _together(self, links: list[tuple[int, int]], bandwidth: float) -> float:
        """Bytes per second of several links at once, all ranks of a node sending: what is under way until the last has arrived."""
        size = int(min(_MOST_BYTES, max(_FIRST_BYTES, 2 * _LONG_ENOUGH_S * bandwidth)))
        seconds = []
        for _ in range(_LEAST_ROUNDS):
            dist.barrier()
            took = 0.0
            works = [dist.irecv(torch.empty(size, dtype=torch.uint8, device=self.device), a) for a, b in links if self.rank == b]
            works += [dist.isend(self._buffer(size), b) for a, b in links if self.rank == a]
            began = time.perf_counter()
            for work in works:
                if work is not None:
                    work.wait()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            if works:
                took = time.perf_counter() - began
            longest = torch.tensor([took], dtype=torch.float64, device=self.device)
            dist.all_reduce(longest, dist.ReduceOp.MAX)
            seconds.append(float(longest.item()))
        return len(links) * size / min(seconds)

    def _buffer(self, size: int) -> torch.Tensor:
        largest = max(self._buffers, default=0)
        if size > largest:
            self._buffers = {size: torch.zeros(size, dtype=torch.uint8, device=self.device)}
            largest = size
        return self._buffers[largest][:size]


def _settled(seconds: list[float]) -> bool:
    """Whether more of the same would hardly change the least."""
    if len(seconds) < _LEAST_ROUNDS:
        return False
    least, second = sorted(seconds)[:2]
    return len(seconds) >= _MOST_ROUNDS or second - least <= _STABLE * second


def _own_facts(device: torch.device) -> RankFacts:
    if device.type != "cuda":
        return facts_of_this_rank()
    found = torch.cuda.get_device_properties(device)
    address = f"{found.pci_domain_id:04x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}.0"
    return facts_of_this_rank(pci_address=address, accelerator=found.name, memory_bytes=found.total_memory)
