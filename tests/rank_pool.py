"""Ranks that take one piece of work after the other: starting them is what costs."""

import os
import pickle
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch

from tests.warm_python import ROOT, Popen, die_with_parent

_LONGEST_SECONDS = 1800
"""Of a piece of work. A test has its own limit, which is shorter."""
_MOST_PIECES = 10
"""Of work for ranks before others take their place: each model leaves the process groups of Transformers' meshes, with threads that spin."""
_LAST_WORDS_SECONDS = 15
_PATIENCE = timedelta(minutes=3)
"""Of a rank with another, on a machine that has more to do."""


class WorkError(Exception):
    """What a rank raised: its kind, its message, and where."""


class RankPool:
    """Ranks are started with the first piece of work, again after some pieces, and after one that only some refused: others may still wait."""

    def __init__(self, num_ranks: int = 4) -> None:
        self.num_ranks = num_ranks
        self.ranks: list[tuple[Popen, Connection]] = []
        self.pieces = 0

    def do(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """`work(*arguments, member)` on every rank: what each returned. Raises WorkError of the first rank that raised."""
        if self.pieces >= _MOST_PIECES:
            self.close()
        if not self.ranks:
            self._start()
        self.pieces += 1
        for _, pipe in self.ranks:
            with suppress(OSError):  # a rank that ended: its answer tells
                pipe.send_bytes(pickle.dumps((work, arguments)))
        answers, seconds = [], _LONGEST_SECONDS
        for rank, (_, pipe) in enumerate(self.ranks):
            if not pipe.poll(seconds):
                answers.append(("TimeoutError", f"rank {rank} did not answer", ""))
            else:
                answers.append(_received(pipe))
            if answers[-1][0] != "":
                seconds = _LAST_WORDS_SECONDS
        failed = [answer for answer in answers if answer[0] != ""]
        if failed:
            alike = len(failed) == len(answers) and len({answer[:2] for answer in failed}) == 1
            if not alike or failed[0][0] in ("EOFError", "TimeoutError"):
                self.close()  # else all ranks refused alike, and none waits for another
            said = next((answer for answer in failed if answer[0] not in ("RankError", "TimeoutError", "EOFError")), failed[0])
            raise WorkError(": ".join(said[:2]), said[2])
        return [value for _, value, _ in answers]

    def _start(self) -> None:
        self.folder, self.pieces = tempfile.TemporaryDirectory(), 0
        for rank in range(self.num_ranks):
            ours, theirs = socket.socketpair()
            with theirs:
                words = [str(rank), str(self.num_ranks), f"{self.folder.name}/rendezvous"]
                process = Popen([sys.executable, "-m", "tests.rank_pool", *words], cwd=ROOT, stdin=theirs)
            self.ranks.append((process, Connection(ours.detach())))

    def close(self) -> None:
        """End all ranks."""
        for process, _ in self.ranks:
            process.kill()
        for process, pipe in self.ranks:
            process.wait()
            pipe.close()
        if self.ranks:
            self.folder.cleanup()
        self.ranks = []


def _received(pipe: Connection) -> tuple[str, Any, str]:
    try:
        return pickle.loads(pipe.recv_bytes())  # noqa: S301 - of our own rank
    except (EOFError, OSError):
        return "EOFError", "a rank ended", ""


def _serve(rank: int, num_ranks: int, rendezvous: str) -> None:
    """Work comes by standard input, a socket, and answers go back there."""
    from grace_moe.runtime.job.local_ranks import environment_of_ranks
    from grace_moe.runtime.job.ranks import joined, leave

    die_with_parent()  # else it goes on with its work where the tests were killed
    pipe = Connection(os.dup(0))
    os.environ |= environment_of_ranks(num_ranks) | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks)}
    torch.set_num_threads(1)
    with joined(rendezvous_file=rendezvous, timeout=_PATIENCE) as member:
        while True:
            try:
                work, arguments = pickle.loads(pipe.recv_bytes())  # noqa: S301 - of the tests that started it
            except EOFError:
                break
            try:
                answer = pickle.dumps(("", work(*arguments, member), ""))
            except Exception as error:
                answer = pickle.dumps((type(error).__name__, str(error), traceback.format_exc()))
            pipe.send_bytes(answer)
    leave(0)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
