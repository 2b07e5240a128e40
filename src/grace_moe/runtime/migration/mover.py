"""The thread of a rank that moves weights, chunk by chunk, as steps grant it.

Every rank grants its mover one chunk a step, so the n-th chunk of a stage has the same step on every rank. A chunk that is not
through `patience` seconds after its step is late: a rank is stuck, cut off or too slow, and the migration is rolled back.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Any

import torch

from grace_moe.adapt import Move, Stage
from grace_moe.errors import GraceError, RankError, VerificationError
from grace_moe.runtime.dispatch.collectives import is_communication_error
from grace_moe.runtime.migration.link import Link, wait_until
from grace_moe.runtime.migration.plan import MigrationPlan
from grace_moe.runtime.migration.slots import SlotWeights

CHECKSUM_BYTES = 8
"""CRC-32 of an expert's weights, sent behind them."""
_POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a rank's mover gave up."""

    order: int
    """The least over all ranks tells the cause: of the earliest chunk, who received nothing before whose connection broke, and both
    before who could not send."""
    rank: int
    """At fault."""
    words: str


class Mover:
    """Works for `Migration`, which asks it between steps and never waits for it."""

    def __init__(self, weights: Mapping[int, SlotWeights], link: Link, rank: int, patience: float) -> None:
        self._weights, self._rank, self._patience = weights, rank, patience
        self._link = link
        self._changed = Condition()
        self._task: Callable[[], None] | None = None
        self._granted_at: list[float] = []
        self._cancelled = self._ends = False
        self.failure: Failure | None = None
        self.arrived: dict[tuple[int, int], torch.Tensor] = {}
        """(layer index, expert) -> weights that came, of the stage under way: at most as many on a device as the stage has rounds."""
        self.bytes_received = 0
        self._layer_ids: dict[int, int] = {}
        """Of the stage's layers, by index."""
        self._thread = Thread(target=self._work, name="grace-moe-mover", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def idle(self) -> bool:
        """Whether its last task is done, or given up."""
        return self._task is None

    def do(self, task: Callable[[], None]) -> None:
        """Begin a task; the last one is done."""
        with self._changed:
            assert self._task is None, "one task at a time"
            self._task, self._granted_at, self._cancelled, self.failure = task, [], False, None
            self._changed.notify_all()

    def grant(self) -> None:
        """A step begins: one more part of the task may be done."""
        with self._changed:
            self._granted_at.append(time.monotonic())
            self._changed.notify_all()

    def cancel(self) -> None:
        """Give the task up as soon as what is under way ends."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()

    def close(self, seconds: float = 1.0) -> None:
        """End the thread; one that hangs in a transfer is left behind."""
        self.cancel()
        with self._changed:
            self._ends = True
            self._changed.notify_all()
        self._thread.join(seconds)

    def move(self, plan: MigrationPlan, stage: Stage, chunk_bytes: int, slot_of: Callable[[int, int], int]) -> None:
        """A task: this rank's part of a stage. `slot_of`: where an expert (layer index, expert) stands on this rank."""
        self.arrived, self._layer_ids = {}, {index: plan.routes[index].layer_id for index in stage.layers}
        first = 0
        for moves in stage.rounds:
            of_move = {move: self._weights[self._layer_ids[move.layer]] for move in moves}
            first = self._round(of_move, chunk_bytes, first, slot_of)

    def renew(self) -> None:
        """A task: a new link, with all ranks."""
        self._link.renew()

    def _round(self, of_move: Mapping[Move, SlotWeights], chunk_bytes: int, first: int, slot_of: Callable[[int, int], int]) -> int:
        """This rank's part of a round, whose chunks begin at `first`; returns where the next round's begin.

        Args:
            of_move: the layer's weights of each of its moves, on all ranks: the largest expert says how many chunks there are.
        """
        parcels = []
        for move, weights in of_move.items():
            if move.source == self._rank:
                parcels.append((move, with_checksum(weights.read(slot_of(move.layer, move.expert)))))
            elif move.target == self._rank:
                parcels.append((move, torch.empty(weights.expert_bytes + CHECKSUM_BYTES, dtype=torch.uint8)))
        starts = range(0, max(weights.expert_bytes for weights in of_move.values()) + CHECKSUM_BYTES, chunk_bytes)
        for number, start in enumerate(starts, start=first):
            parts = [(move, parcel[start : start + chunk_bytes]) for move, parcel in parcels if start < len(parcel)]
            if parts:
                self._chunk(number, parts)
        for move, parcel in parcels:
            if move.target == self._rank:
                self._take(move, parcel, of_move[move], first + len(starts) - 1)
        return first + len(starts)

    def _chunk(self, number: int, parts: list[tuple[Move, torch.Tensor]]) -> None:
        deadline = self.granted(number) + self._patience
        parts = sorted(parts, key=lambda part: part[0].source == self._rank)  # receives are posted first: see `Channel`
        works = []
        for move, part in parts:
            receives = move.target == self._rank
            other = move.source if receives else move.target
            begin = self._link.receive if receives else self._link.send
            with self._failing(number, move, other):
                works.append((move, other, begin(part, other)))
        for move, other, work in works:
            with self._failing(number, move, other):
                wait_until(work, deadline)
        if time.monotonic() > deadline:
            self._fail(4 * number + 3, self._rank, parts[0][0], "too slow")

    @contextmanager
    def _failing(self, number: int, move: Move, other: int) -> Iterator[None]:
        """Give up where a transfer with another rank fails. One that times out closes its connections to all ranks: theirs break after."""
        try:
            yield
        except RankError as error:
            self._fail(4 * number + 2 * (other == move.target), other, move, str(error))
        except OSError as error:
            self._fail(0, self._rank, move, f"{type(error).__name__}: {error}")
        except RuntimeError as error:
            if not is_communication_error(error):
                raise
            self._fail(4 * number + 2 * (other == move.target) + 1, other, move, "the connection broke")

    def granted(self, number: int) -> float:
        """When the step of the task's n-th part began, counted from 0; a task waits for it here."""
        with self._changed:
            while len(self._granted_at) <= number and not self._cancelled:
                self._changed.wait(_POLL_SECONDS)
            if self._cancelled:
                raise _CancelledError
            return self._granted_at[number]

    def _take(self, move: Move, parcel: torch.Tensor, of_layer: SlotWeights, number: int) -> None:
        try:
            weights = checked(parcel)
        except VerificationError as error:
            self._fail(4 * number, move.source, move, str(error))
        self.arrived[move.layer, move.expert] = of_layer.brought(weights)
        self.bytes_received += len(weights)

    def _fail(self, order: int, rank: int, move: Move, words: str) -> None:
        which = f"layer {self._layer_ids[move.layer]}, expert {move.expert} from rank {move.source} to rank {move.target}"
        self.failure = Failure(order=order, rank=rank, words=f"{which}: {words}")
        raise _CancelledError

    def _work(self) -> None:
        while True:
            with self._changed:
                while self._task is None and not self._ends:
                    self._changed.wait(_POLL_SECONDS)
                if self._ends:
                    return
                task = self._task
            assert task is not None
            try:
                task()
            except _CancelledError:
                pass
            except Exception as error:  # whatever it is, the old plan serves on, and the error is told
                words = str(error) if isinstance(error, GraceError) else f"{type(error).__name__}: {error}"
                self.failure = Failure(order=0, rank=self._rank, words=words.splitlines()[0])
            self._task = None


class _CancelledError(Exception):
    """The task is given up."""


def with_checksum(weights: torch.Tensor) -> torch.Tensor:
    """uint8 weights with their checksum behind them."""
    checksum = _checksum(weights).to_bytes(CHECKSUM_BYTES, "little")
    return torch.cat([weights, torch.frombuffer(bytearray(checksum), dtype=torch.uint8)])


def _checksum(weights: torch.Tensor) -> int:
    array: Any = weights.numpy()
    return zlib.crc32(array)


def checked(parcel: torch.Tensor) -> torch.Tensor:
    """The weights of `with_checksum`. Raises VerificationError where they are not what was sent."""
    weights, told = parcel[:-CHECKSUM_BYTES], parcel[-CHECKSUM_BYTES:]
    if _checksum(weights) != int.from_bytes(told.numpy().tobytes(), "little"):
        raise VerificationError("its checksum differs on arrival")
    return weights
