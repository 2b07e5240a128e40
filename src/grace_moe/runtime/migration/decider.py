"""What decides, off the serving ranks: a process beside rank 0, which holds the very policy that `simulate` measures."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol

from grace_moe.adapt import AdaptOptions, Effects
from grace_moe.adapt.beside import start_beside
from grace_moe.placement import Placement
from grace_moe.runtime.model.choice_sampler import SampledStep
from grace_moe.trace import RoutingTrace

if TYPE_CHECKING:
    from grace_moe.adapt.telemetry import TrafficView

_WAITING = 64
"""Messages that wait for it at most; while it plans for longer, steps go unwatched."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was decided so far."""

    steps: int = 0
    """That it has taken in."""
    decisions: int = 0
    skipped: int = 0
    reason: str = ""
    effects: Effects = field(default_factory=Effects)
    plan: bytes = b""
    """Proposed now (`plan.proposal`); empty = nothing."""
    view: TrafficView | None = None
    """The last view of traffic; None = none yet, or none is asked for."""
    error: str = ""
    """What it could not do, though it goes on; empty = nothing."""


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A message to the process: steps that were served."""

    steps: tuple[SampledStep, ...]


@dataclass(frozen=True, kw_only=True)
class Switched:
    """A message to the process: the layers of its last proposal that serve now, by index."""

    layers: tuple[int, ...]


class Decides(Protocol):
    """Of rank 0: takes in what was served, and proposes."""

    @property
    def alive(self) -> bool:
        """Whether it still decides."""
        ...

    def take(self, steps: Sequence[SampledStep]) -> None:
        """Steps that were served; never waits."""
        ...

    def moved(self, layers: Sequence[int]) -> None:
        """The indices of the layers of its last proposal that serve now. Until it is told, it proposes nothing more."""
        ...

    def answer(self) -> Answer:
        """What it last said; a plan is said once."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class DecidingProcess:
    """`Decides`, by an `Adapter` in a process of its own. A thread waits for its answers."""

    def __init__(
        self,
        serving: Placement,
        planned_on: RoutingTrace,
        options: AdaptOptions,
        seed: int,
        *,
        view_every: int = 0,
        log: Path | None = None,
    ) -> None:
        """`view_every`: steps between two views of traffic; 0 = none. `log`: see `AdaptingOptions`."""
        self._process, ours = start_beside("grace_moe.runtime.migration.deciding")
        self._messages: SimpleQueue[Any] = SimpleQueue()
        self._messages.put((serving, planned_on, options, seed, view_every, log))
        self._answer, self._plan = Answer(), b""
        self._thread = Thread(target=self._talk, args=(ours,), name="grace-moe-decider", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and self._process.poll() is None

    def take(self, steps: Sequence[SampledStep]) -> None:
        """See `Decides`."""
        if self._messages.qsize() < _WAITING:
            self._messages.put(Watched(steps=tuple(steps)))

    def moved(self, layers: Sequence[int]) -> None:
        """See `Decides`."""
        self._messages.put(Switched(layers=tuple(layers)))

    def answer(self) -> Answer:
        """See `Decides`."""
        plan, self._plan = self._plan, b""
        return replace(self._answer, plan=plan)

    def close(self) -> None:
        """See `Decides`."""
        self._process.kill()
        self._process.wait()

    def _talk(self, process: Connection) -> None:
        with process, suppress(EOFError, OSError):  # it ended: `alive` says so
            while True:
                process.send(self._messages.get())
                self._answer = process.recv()
                self._plan = self._answer.plan or self._plan  # until it is asked for: later answers have none
