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
from grace_moe.discover.evidence import doubtful, sure_tiers
from grace_moe.discover.finding import Discovery, discover, topology_of
from grace_moe.discover.launcher import declared_by_launcher, declared_by_machine, wrong_sizes
from grace_moe.discover.link_kinds import nvml_link_kinds
from grace_moe.discover.measured import Measured, Sample, gathered, pairs_to_measure, rounds_of
from grace_moe.discover.rank_facts import RankFacts, facts_of_this_rank
from grace_moe.discover.reading import Declared, declarations_of
from grace_moe.discover.tiers import FoundTier
from grace_moe.errors import TopologyError, UsageError
from grace_moe.runtime.dispatch.rank_groups import message_device, rank_device
from grace_moe.runtime.job.ranks import Membership
from grace_moe.topology import Topology

MOST_PAIRS = 2048
"""Pairs that are measured one by one; of more, one of every two machines stands for the others."""
_PINGS = 7
_CHUNKS = 10
"""Messages of a stream, sent without waiting. Between their arrivals neither latency counts, nor what a link lets through at once."""
_FIRST_BYTES, _MOST_BYTES = 64 * 2**10, 2**26
"""Of a message of a stream."""
_LONG_ENOUGH_S = 0.02
"""A stream that takes so long tells the bandwidth; of shorter ones the messages are made larger."""
_STREAMS = 2
"""Of a direction, each time that it is measured."""
_MOST_AGAIN = 5
"""Times that doubted pairs are measured again."""
_ENOUGH_S = 8.0
"""Since the first stream: later, doubted pairs are not measured again; half as long again as the first time where that is more."""
_UNSURE = 3.0
"""Times as long, where not all streams show the same tiers."""
_TOGETHER = 3
"""Times that sharing is measured."""
_SHARED = 0.8
"""Of what devices send alone; less together, and they share the link."""
_SAMPLES = 2
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
    declarations, notes = _declarations(declared, facts)
    measured = probe.measure([fact.machine for fact in facts], on_round or _unheard)
    found = discover(measured, declarations, [*wrong_sizes(facts), *notes])
    shared = probe.shared(found.tiers, _agreed_node(found))
    return found, topology_of(found, measured, facts, shared)


def _agreed_node(found: Discovery) -> int:
    """Which tier is that inside nodes, as rank 0 has it, who knows what is declared. Collective."""
    told = torch.tensor([found.node], device=rank_device())
    dist.broadcast(told, 0)
    return int(told.item())


def _declarations(declared: Sequence[Declared], facts: Sequence[RankFacts]) -> tuple[list[Declaration], list[str]]:
    """Of launcher, machine, NVML where ranks have GPUs, and what was given; and what NVML says of other GPUs than the ranks have."""
    found = declared_by_launcher(facts) + declared_by_machine(facts)
    for one in declared:
        found += declarations_of(one, facts)
    asked = nvml_link_kinds() if rank_device().type == "cuda" else None
    try:
        return found + ([] if asked is None else asked.declarations(facts)), []
    except TopologyError as error:
        return found, [str(error)]


def _unheard(done: int, total: int) -> None:
    """Nobody wants to know."""


@dataclass(kw_only=True)
class Probe:
    """This rank's end of the measurements. All ranks call the same methods in the same order."""

    rank: int
    world_size: int
    device: torch.device = field(default_factory=message_device)
    """Where its messages lie."""
    _buffers: dict[int, torch.Tensor] = field(default_factory=dict)
    _sizes: dict[int, int] = field(default_factory=dict)
    """Of messages, by sender, which made a stream long enough."""

    def facts(self) -> tuple[RankFacts, ...]:
        """What every rank knows of itself. Collective."""
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, _own_facts(rank_device()))
        return tuple(found)

    def measure(self, machines: list[str], on_round: Callable[[int, int], None] = lambda done, total: None) -> Measured:
        """Every pair, and those in doubt again. Collective: all ranks get all of it.

        Args:
            machines: of each rank, its machine.
            on_round: told how many rounds are done, of how many; doubted pairs are told by themselves.
        """
        every = pairs_to_measure(machines, MOST_PAIRS)
        began = time.perf_counter()
        samples = self._measured_once(every, machines, on_round)
        enough = max(_ENOUGH_S, 1.5 * (time.perf_counter() - began))
        measured = gathered(samples, machines)
        for _ in range(_MOST_AGAIN):
            seconds = time.perf_counter() - began
            late = seconds > enough and (seconds > _UNSURE * enough or not sure_tiers(measured)[1])
            again = self._as_rank_0_has([] if late else sorted(set(every) & set(doubtful(measured))))
            if not again:
                break
            samples += self._measured_once(again, machines, on_round)
            measured = gathered(samples, machines)
        return measured

    def _measured_once(self, pairs: list[tuple[int, int]], machines: list[str], on_round: Callable[[int, int], None]) -> list[Sample]:
        """Both directions of each pair, in rounds in which no machine has two. Collective: all ranks get all of it."""
        rounds = rounds_of(pairs, machines)
        mine = []
        for number, together in enumerate(rounds):
            mine += [self._pair(pair) for pair in together if self.rank in pair]
            dist.barrier()
            on_round(number + 1, len(rounds))
        everyone: list[Any] = [None] * self.world_size
        dist.all_gather_object(everyone, mine)
        return [sample for rank in everyone for sample in rank]

    def _as_rank_0_has(self, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Its pairs, on all ranks: clocks and last digits may differ. Collective."""
        told: list[Any] = [pairs]
        dist.broadcast_object_list(told, 0)
        agreed: list[tuple[int, int]] = told[0]
        return agreed

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

    def _pair(self, pair: tuple[int, int]) -> Sample:
        """What this rank receives from the other, after or before it has sent as much."""
        first, second = pair
        if self.rank == first:
            self._send_streams(second)
            return self._receive_streams(second)
        sample = self._receive_streams(first)
        self._send_streams(first)
        return sample

    def _send_streams(self, other: int) -> None:
        """The other end of `_receive_streams`."""
        for _ in range(_PINGS + 1):
            self._message(other, sending=False)
        while size := self._told(other):
            for _ in range(_CHUNKS):
                dist.send(self._buffer(size), other)
                self._finish()

    def _receive_streams(self, other: int) -> Sample:
        """This end tells the other how large messages are; messages grow until a stream is long enough."""
        pings = [self._message(other, sending=True) for _ in range(_PINGS + 1)][1:]  # a connection's first message takes longer
        size = self._sizes.get(other, _FIRST_BYTES)
        rates: list[float] = []
        while len(rates) < _STREAMS:
            each = self._seconds_a_message(other, size, min(pings))
            if each * _CHUNKS >= _LONG_ENOUGH_S or size == _MOST_BYTES:
                rates.append(size / each)
            else:
                size = int(min(_MOST_BYTES, size * min(16, max(1.25, 1.25 * _LONG_ENOUGH_S / (each * _CHUNKS)))))
        self._tell(other, 0)
        self._sizes[other] = size
        return Sample(sender=other, receiver=self.rank, rates=tuple(rates), latency_s=float(np.median(pings)) / 2)

    def _seconds_a_message(self, other: int, size: int, round_trip: float) -> float:
        """Of a stream's messages: the median of all slopes between arrivals, as a late one does not count.

        A rank that waits for a core finds several messages when it wakes up, as if they had come fast. So it is no less than what the
        stream has taken since it was asked for, up to the message of its second half at which that is least.
        """
        asked = time.perf_counter()
        self._tell(other, size)
        moments = []
        for _ in range(_CHUNKS):
            dist.recv(self._buffer(size), other)
            self._finish()
            moments.append(time.perf_counter())
        first, last = np.triu_indices(_CHUNKS, 1)
        arrived = np.array(moments)
        slope = float(np.median((arrived[last] - arrived[first]) / (last - first)))
        whole = (arrived - asked - round_trip) / np.arange(1, _CHUNKS + 1)
        return max(slope, float(whole[_CHUNKS // 2 :].min()), 1e-9)

    def _tell(self, other: int, size: int) -> None:
        """The size of the next stream's messages; 0 = there is none."""
        dist.send(torch.tensor([size], device=self.device), other)

    def _told(self, other: int) -> int:
        """What `_tell` says."""
        size = torch.zeros(1, dtype=torch.int64, device=self.device)
        dist.recv(size, other)
        return int(size.item())

    def _message(self, other: int, sending: bool) -> float:
        """Seconds of one byte there and one back."""
        began = time.perf_counter()
        for there in (sending, not sending):
            if there:
                dist.send(self._buffer(1), other)
            else:
                dist.recv(self._buffer(1), other)
            self._finish()
        return time.perf_counter() - began

    def _finish(self) -> None:
        """Wait for what was asked of an accelerator."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _together(self, links: list[tuple[int, int]], bandwidth: float) -> float:
        """Bytes per second of several links at once, all ranks of a node sending: what is under way until the last has arrived."""
        size = int(min(_MOST_BYTES, max(8 * _FIRST_BYTES, 3 * _LONG_ENOUGH_S * bandwidth)))  # over what a link lets through at once
        seconds = []
        for _ in range(_TOGETHER):
            dist.barrier()
            took = 0.0
            works = [dist.irecv(torch.empty(size, dtype=torch.uint8, device=self.device), a) for a, b in links if self.rank == b]
            works += [dist.isend(self._buffer(size), b) for a, b in links if self.rank == a]
            began = time.perf_counter()
            for work in works:
                if work is not None:
                    work.wait()
            self._finish()
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


def _own_facts(device: torch.device) -> RankFacts:
    if device.type != "cuda":
        return facts_of_this_rank()
    found: Any = torch.cuda.get_device_properties(device)  # torch's stubs lack its PCI address
    address = f"{found.pci_domain_id:04x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}.0"
    return facts_of_this_rank(pci_address=address, accelerator=found.name, memory_bytes=found.total_memory)
