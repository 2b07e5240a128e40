"""What ranks tell each other at step boundaries, without waiting: told at one boundary, read at the next, alike on all."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields
from datetime import timedelta

import torch
import torch.distributed as dist

from grace_moe.runtime.migration.mover import Failure

_WORDS_BYTES = 160


@dataclass(frozen=True, kw_only=True)
class Vote:
    """Of one rank at one boundary; whole numbers only."""

    alive: int
    """Whether its mover runs, and on rank 0 what decides."""
    idle: int
    """Whether its mover has done its task."""
    offer: int = 0
    """Bytes of the plan that rank 0 proposes."""
    chunk: int = 0
    """Bytes of experts that it would send in a step; the mean over ranks counts."""
    decisions: int = 0
    """Of rank 0, so far."""
    skipped: int = 0
    received: int = 0
    """Bytes that came to it, so far."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """Of all ranks, at the last boundary."""

    votes: tuple[Vote, ...]
    failure: Failure | None
    """The earliest; None = no mover gave up."""
    samples: tuple[torch.Tensor, ...]
    """On rank 0: what each rank's sampler packed."""


class Ballot:
    """A process group of its own, on the CPU."""

    def __init__(self, timeout: timedelta) -> None:
        self._rank, self._ranks = dist.get_rank(), dist.get_world_size()
        group = dist.new_group(backend="gloo", timeout=timeout)
        self._group: dist.ProcessGroup = group
        self._works: list[dist.Work | None] = []
        self._told: list[torch.Tensor] = []
        self._samples: list[torch.Tensor] = []

    def tell(self, vote: Vote, failure: Failure | None, sample: torch.Tensor) -> None:
        """Begin to tell the other ranks."""
        mine = _packed(vote, failure)
        self._told = [torch.empty_like(mine) for _ in range(self._ranks)]
        self._samples = [torch.empty_like(sample) for _ in range(self._ranks)] if self._rank == 0 else []
        self._works += [
            dist.all_gather(self._told, mine, group=self._group, async_op=True),
            dist.gather(sample, self._samples or None, dst=0, group=self._group, async_op=True),
        ]

    def read(self) -> Told | None:
        """What was told at the last boundary; None at the first."""
        if not self._works:
            return None
        for work in self._works:
            if work is not None:
                work.wait()
        self._works = []
        found = [_unpacked(row) for row in self._told]
        failures = [failure for _, failure in found if failure is not None]
        return Told(
            votes=tuple(vote for vote, _ in found),
            failure=min(failures, key=lambda failure: failure.order, default=None),
            samples=tuple(self._samples),
        )

    def share(self, offer: torch.Tensor) -> None:
        """Begin to bring rank 0's bytes into every rank's tensor: they are there when the next boundary has been read."""
        self._works.append(dist.broadcast(offer, src=0, group=self._group, async_op=True))

    def close(self) -> None:
        """Take in what is under way, and leave the group. Collective."""
        self.read()
        dist.destroy_process_group(self._group)


def _packed(vote: Vote, failure: Failure | None) -> torch.Tensor:
    numbers = [*astuple(vote), *((failure.order, failure.rank) if failure is not None else (-1, -1))]
    words = failure.words.encode()[:_WORDS_BYTES] if failure is not None else b""
    head = torch.tensor(numbers, dtype=torch.int64).view(torch.uint8)
    return torch.cat([head, torch.tensor(list(words.ljust(_WORDS_BYTES, b"\0")), dtype=torch.uint8)])


def _unpacked(row: torch.Tensor) -> tuple[Vote, Failure | None]:
    *numbers, order, rank = row[:-_WORDS_BYTES].view(torch.int64).tolist()
    vote = Vote(**{field.name: number for field, number in zip(fields(Vote), numbers, strict=True)})
    words = row[-_WORDS_BYTES:].numpy().tobytes().rstrip(b"\0").decode(errors="replace")
    return vote, Failure(order=order, rank=rank, words=words) if order >= 0 else None
