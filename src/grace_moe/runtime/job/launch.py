"""Local ranks: start them, watch them, stop them all when one fails, and say which."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from grace_moe.errors import GraceError, MismatchError, ModelError, RankError, UsageError
from grace_moe.runtime.job.job import Job
from grace_moe.runtime.job.results import RunResult, load_results

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 12.0
"""After the first failure the others get this long to say what they saw (their roll call takes 5 s), then they are killed."""
_KINDS: dict[int, type[GraceError]] = {
    UsageError.exit_code: UsageError,
    MismatchError.exit_code: MismatchError,
    ModelError.exit_code: ModelError,
}


def run_local(job: Job, num_ranks: int, *, on_status: Callable[[str], None] | None = None) -> tuple[RunResult, ...]:
    """Run the job on `num_ranks` processes of this machine.

    Args:
        on_status: told the name of each run as it begins.

    Raises:
        RankError: a rank died; the others were stopped.
        GraceError: a rank refused the job, of the kind that it raised.
    """
    with tempfile.TemporaryDirectory(prefix="grace-moe-") as name:
        folder = Path(name)
        job.save(folder / "job.json")
        ranks = [_start(folder, rank, num_ranks) for rank in range(num_ranks)]
        try:
            _watch(ranks, folder, on_status)
        finally:
            _stop(ranks)
        return load_results(folder)


def _start(folder: Path, rank: int, num_ranks: int) -> subprocess.Popen[bytes]:
    environment = dict(os.environ, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num_ranks), LOCAL_WORLD_SIZE=str(num_ranks))
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_ranks)))
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # ranks share cores: a waiting thread must not spin
    with open(folder / f"rank{rank}.log", "wb") as log:
        command = [sys.executable, "-m", "grace_moe.runtime.job.worker", str(folder)]
        return subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )


def _watch(ranks: list[subprocess.Popen[bytes]], folder: Path, on_status: Callable[[str], None] | None) -> None:
    status = ""
    while True:
        codes = [p.poll() for p in ranks]
        failed = [r for r, code in enumerate(codes) if code not in (None, 0)]
        if failed:
            break
        if on_status is not None and (folder / "status").exists():
            now = (folder / "status").read_text()
            if now and now != status:
                status = now
                on_status(status)
        if all(code == 0 for code in codes):
            return
        time.sleep(_POLL_SECONDS)
    first = failed[0]
    deadline = time.monotonic() + _GRACE_SECONDS
    while time.monotonic() < deadline and any(p.poll() is None for p in ranks):
        time.sleep(_POLL_SECONDS)
    _raise_for(first, [p.poll() for p in ranks], folder)


def _raise_for(first: int, codes: list[int | None], folder: Path) -> None:
    """The error of the rank that explains the rest: one that refused the job, else one that was killed, else the first."""
    refused = [r for r, code in enumerate(codes) if code in _KINDS]
    killed = [r for r, code in enumerate(codes) if code is not None and code < 0]
    rank = (refused or killed or [first])[0]
    code = codes[rank]
    lines = [line for line in (folder / f"rank{rank}.log").read_text(errors="replace").splitlines() if line.strip()]
    said = lines[-1].removeprefix("error: ") if lines else "it said nothing"
    if code in _KINDS:
        raise _KINDS[code](said)
    if code is not None and code < 0:
        said = f"killed by {signal.Signals(-code).name}; out of memory?" if -code == signal.SIGKILL else f"killed by signal {-code}"
    raise RankError(f"rank {rank} of {len(codes)} stopped: {said}; the other ranks were stopped")


def _stop(ranks: list[subprocess.Popen[bytes]]) -> None:
    for process in ranks:
        if process.poll() is None:
            process.kill()
    for process in ranks:
        process.wait()
