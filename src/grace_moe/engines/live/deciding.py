"""What decides by choices, off the threads that serve: `WindowPolicy` in a process of its own.

`python -m grace_moe.engines.live.deciding PIPE` is that process, which `DecidingProcess` starts.
"""

from __future__ import annotations

from multiprocessing.connection import Connection
from subprocess import Popen

from grace_moe.adapt.beside import run_beside, start_beside
from grace_moe.engines.equaliser import Replanned
from grace_moe.engines.live.window_adapter import SeenChoices, WindowPolicy
from grace_moe.errors import GraceError
from grace_moe.placement import Placement


class DecidingProcess:
    """`WindowPolicy` elsewhere: whoever asks waits, and leaves the interpreter to other threads. It starts with the first window."""

    def __init__(self) -> None:
        self._beside: tuple[Popen[bytes], Connection] | None = None

    def next(self, serving: Placement, seen: SeenChoices, most_moves: int) -> Replanned:
        """See `WindowPolicy`. Where the process has ended, the reason says so; the next window starts another."""
        if self._beside is None:
            self._beside = start_beside(__name__)
        _, pipe = self._beside
        try:
            pipe.send((serving, seen, most_moves))
            found: Replanned = pipe.recv()
        except (EOFError, OSError):
            reason = f"the process that decides ended (exit code {self.close()}); the next window starts another, which learns traffic anew"
            return Replanned(placement=serving, moved=0, reason=reason)
        return found

    def close(self) -> int | None:
        """End the process where there is one. Returns its exit code."""
        if self._beside is None:
            return None
        (process, pipe), self._beside = self._beside, None
        pipe.close()
        return process.wait()


def main(pipe: Connection) -> None:
    """Take windows as `DecidingProcess` sends them, and answer each."""
    policy = WindowPolicy()
    while True:
        serving, seen, most_moves = pipe.recv()
        try:
            found = policy.next(serving, seen, most_moves)
        except GraceError as error:
            found = Replanned(placement=serving, moved=0, reason=f"nothing is decided: {error}")
        pipe.send(found)


if __name__ == "__main__":
    run_beside(main)
