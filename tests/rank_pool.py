"""Ranks that take one piece of work after the other: starting them is what costs."""

import os
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.multiprocessing as mp

_LONGEST_SECONDS = 600
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
        self.ranks: list[tuple[Any, Connection]] = []
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
                pipe.send((work, arguments))
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
        context = mp.get_context("spawn")
        for rank in range(self.num_ranks):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self.num_ranks, f"{self.folder.name}/rendezvous", theirs), daemon=True)
            process.start()
            theirs.close()
            self.ranks.append((process, ours))

    def close(self) -> None:
        """End all ranks."""
        for process, _ in self.ranks:
            process.kill()
        for process, pipe in self.ranks:
            process.join()
            pipe.close()
        if self.ranks:
            self.folder.cleanup()
        self.ranks = []


def _received(pipe: Connection) -> tuple[str, Any, str]:
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return "EOFError", "a rank ended", ""


def _serve(rank: int, num_ranks: int, rendezvous: str, pipe: Connection) -> None:
    from grace_moe.runtime.job.local_ranks import environment_of_ranks
    from grace_moe.runtime.job.ranks import joined, leave

    os.environ |= environment_of_ranks(num_ranks) | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks)}
    torch.set_num_threads(1)
    with joined(rendezvous_file=rendezvous, timeout=_PATIENCE) as member:
        while True:
            try:
                work, arguments = pipe.recv()
            except EOFError:
                break
            try:
                pipe.send(("", work(*arguments, member), ""))
            except Exception as error:
                pipe.send((type(error).__name__, str(error), traceback.format_exc()))
    leave(0)
