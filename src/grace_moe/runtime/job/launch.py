"""Local ranks: start them, watch them, stop them all when one fails, and say which."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from grace_moe.errors import RankError
from grace_moe.runtime.job.failure import error_of_ranks
from grace_moe.runtime.job.folder import job_folder
from grace_moe.runtime.job.job import Job
from grace_moe.runtime.job.results import RunResult, load_results

_POLL_SECONDS = 0.1
_LAST_WORDS_SECONDS = 12.0
"""Where ranks only say that they lost another, the others get this long to end (a roll call takes 5 s); then they are killed."""


def run_local(job: Job, num_ranks: int, *, on_status: Callable[[str], None] | None = None) -> tuple[RunResult, ...]:
    """Run the job on `num_ranks` processes of this machine. However this process ends, none of them stays, nor a file of theirs.

    Args:
        on_status: told the name of each run as it begins.

    Raises:
        RankError: a rank died; the others were stopped.
        GraceError: a rank refused the job, of the kind that it raised.
    """
    with job_folder() as folder:
        ranks: list[subprocess.Popen[bytes]] = []
        try:
            ranks.extend(_start(folder, rank, num_ranks) for rank in range(num_ranks))
            for process in ranks:
                hand_over(job, process)
            _watch(ranks, folder, on_status)
        finally:
            _stop(ranks)
        return load_results(folder)


def _start(folder: Path, rank: int, num_ranks: int) -> subprocess.Popen[bytes]:
    with open(folder / f"rank{rank}.log", "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "grace_moe.runtime.job.worker", str(folder)],
            env=rank_environment(rank, num_ranks),
            stdin=subprocess.PIPE,
            bufsize=0,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for this process, which then stops them
        )


def rank_environment(rank: int, num_ranks: int) -> dict[str, str]:
    """This process's environment as one rank of this machine needs it."""
    environment = dict(os.environ, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num_ranks), LOCAL_WORLD_SIZE=str(num_ranks))
    environment["GLOO_SOCKET_IFNAME"] = loopback()  # nothing else needs to reach them
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_ranks)))
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # ranks share cores: a waiting thread must not spin
    return environment


def loopback() -> str:
    """The name of this machine's loopback interface."""
    return next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")


def hand_over(job: Job, worker: subprocess.Popen[bytes]) -> None:
    """Give a worker its job. Its standard input stays open: the worker ends when that is closed, as it is when this process ends."""
    data = job.to_json()
    assert worker.stdin is not None
    with suppress(BrokenPipeError):  # it ended: its exit code tells more
        worker.stdin.write(b"%d\n" % len(data))
        rest = memoryview(data)
        while rest:
            rest = rest[worker.stdin.write(rest) :]


def _watch(ranks: list[subprocess.Popen[bytes]], folder: Path, on_status: Callable[[str], None] | None) -> None:
    """Wait until all ranks are done. Raises where one fails, once it is clear which of them explains it."""
    status, first_failure = "", 0.0
    while True:
        codes = [process.poll() for process in ranks]
        failed = [code for code in codes if code]
        if not failed:
            if None not in codes:
                return
            status = _tell(status, folder / "status", on_status)
        else:
            first_failure = first_failure or time.monotonic()
            waited = time.monotonic() > first_failure + _LAST_WORDS_SECONDS
            if waited or None not in codes or any(code != RankError.exit_code for code in failed):
                raise error_of_ranks(codes, folder)
        time.sleep(_POLL_SECONDS)


def _tell(status: str, file: Path, on_status: Callable[[str], None] | None) -> str:
    """The run that has begun, told once."""
    now = file.read_text() if on_status is not None and file.exists() else ""
    if on_status is None or now in ("", status):
        return status
    on_status(now)
    return now


def _stop(ranks: list[subprocess.Popen[bytes]]) -> None:
    for process in ranks:
        process.kill()
    for process in ranks:
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
