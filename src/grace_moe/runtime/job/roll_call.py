"""Which ranks are lost: each rank has a thread that answers for it as long as it lives, whatever its main thread waits for."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from torch.distributed import Store

_ROLL_CALL_SECONDS = 5.0
"""After which a rank that does not answer is lost."""
_POLL_SECONDS = 0.25
_ASKED = "roll call"


class RollCall:
    """Answers for this rank, and asks after the others.

    torchrun ends every rank (SIGTERM) when it sees that one is gone. A rank that is ended so answers first, as it is not what was lost;
    if it is asking after the others, it ends only when it has said whom it misses.
    """

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self._store, self._rank, self._world_size = store, rank, world_size
        self._asking = False
        self._ends, self._told_to_end = os.pipe()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Answer while the block runs, and for good once it is done: a rank that has done its work is not lost."""
        own: Store = self._store.clone()  # type: ignore[attr-defined] # missing in torch's stubs; for a thread of its own
        threading.Thread(target=self._answer, args=(own,), daemon=True).start()
        with self._ending_by_thread():
            yield
        with suppress(RuntimeError):  # the store is gone: its keeper is done, too
            self._store.set(_alive(self._rank), "1")

    def lost(self) -> list[int]:
        """Ranks that don't answer within a few seconds.

        Raises:
            RuntimeError: the store is gone.
        """
        self._asking = True
        self._store.set(_alive(self._rank), "1")
        self._store.set(_ASKED, "1")
        silent = list(range(self._world_size))
        deadline = time.monotonic() + _ROLL_CALL_SECONDS
        while silent and time.monotonic() < deadline:
            silent = [r for r in silent if not self._store.check([_alive(r)])]
            time.sleep(0.05 if silent else 0)
        return silent

    @contextmanager
    def _ending_by_thread(self) -> Iterator[None]:
        """Let the answering thread end this process on SIGTERM: the main thread may wait in a collective, where no handler runs."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals are not ours to set
            return
        os.set_blocking(self._told_to_end, False)
        handler_before = signal.signal(signal.SIGTERM, _noted)
        wakeup_before = signal.set_wakeup_fd(self._told_to_end, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup_before)
            signal.signal(signal.SIGTERM, handler_before)

    def _answer(self, store: Store) -> None:
        answered = False
        while True:
            told = select.select([self._ends], [], [], _POLL_SECONDS)[0]
            ends = bool(told) and signal.SIGTERM in os.read(self._ends, 64)
            with suppress(RuntimeError):  # the store is gone, and with it whoever would ask
                if not answered and (ends or store.check([_ASKED])):
                    store.set(_alive(self._rank), "1")
                    answered = True
            if ends and not self._asking:
                os._exit(128 + signal.SIGTERM)


def _alive(rank: int) -> str:
    return f"alive/{rank}"


def _noted(number: int, frame: FrameType | None) -> None:
    """The signal is in the wake-up pipe already."""
