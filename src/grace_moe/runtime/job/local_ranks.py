"""The processes of a job on this machine: started early, while the launcher still reads what the job is; stopped however it ends.

Nothing here imports torch, so that the ranks' own import begins at once.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grace_moe.errors import RankError
from grace_moe.runtime.job.events import EventReader, Listener, Said
from grace_moe.runtime.job.failure import error_of_parent, error_of_ranks, parent_log
from grace_moe.runtime.job.folder import job_folder
from grace_moe.runtime.job.worker import send_job

_WAIT_SECONDS = 0.2
_LAST_WORDS_SECONDS = 12.0
"""Where ranks only say that they lost another, the others get this long to end (a roll call takes 5 s); then they are killed."""


@dataclass(kw_only=True)
class StartingRanks:
    """Ranks that import what they need, and wait for a job."""

    num_ranks: int
    folder: Path
    """The job's own: logs, rendezvous, results."""
    parent: subprocess.Popen[bytes]
    codes: list[int | None] = field(default_factory=list)
    """Exit code of each rank; None = not ended."""

    def do(self, job: bytes, listener: Listener) -> None:
        """Give the ranks their job, and wait until all have done it.

        Raises:
            RankError: a rank died.
            GraceError: a rank refused the job, of the kind that it raised.
        """
        assert self.parent.stdout is not None
        events = EventReader(self.parent.stdout.fileno())
        self.codes = [None] * self.num_ranks
        send_job(job, self.parent)
        first_failure = 0.0
        while None in self.codes or any(self.codes):
            for event in events.read(_WAIT_SECONDS):
                self._take(event, listener)
            failed = [code for code in self.codes if code]
            if failed:
                first_failure = first_failure or time.monotonic()
                waited = time.monotonic() > first_failure + _LAST_WORDS_SECONDS
                if waited or None not in self.codes or any(code != RankError.exit_code for code in failed):
                    raise error_of_ranks(self.codes, self.folder)
            elif events.ended and None in self.codes:
                raise error_of_parent(self.parent.wait(), self.folder)

    def _take(self, event: dict[str, Any], listener: Listener) -> None:
        if "ended" in event:
            rank, code = event["ended"]
            self.codes[rank] = code
        elif "run" in event:
            listener.on_run(event["run"])
        elif "metrics" in event:
            listener.on_metrics(event["metrics"])
        else:
            listener.on_tokens([Said(*said) for said in event["tokens"]])


@contextmanager
def starting_ranks(num_ranks: int) -> Iterator[StartingRanks]:
    """Start that many ranks on this machine. However the block ends, none of them stays, nor a file of theirs."""
    with job_folder() as folder:
        with open(parent_log(folder), "wb") as log:
            parent = subprocess.Popen(
                [sys.executable, "-m", "grace_moe.runtime.job.rank_parent", str(folder), str(num_ranks)],
                env=environment_of_ranks(num_ranks),
                stdin=subprocess.PIPE,
                bufsize=0,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for this process, which then stops them
            )
        try:
            yield StartingRanks(num_ranks=num_ranks, folder=folder, parent=parent)
        finally:
            _stop(parent)


def environment_of_ranks(num_ranks: int) -> dict[str, str]:
    """This process's environment as ranks of one machine need it."""
    environment = dict(os.environ, GLOO_SOCKET_IFNAME=loopback())  # nothing else needs to reach them
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_ranks)))
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # ranks share cores: a waiting thread must not spin
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy starts its threads when it is imported, and ranks are forked after that
    return environment


def loopback() -> str:
    """The name of this machine's loopback interface."""
    return next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")


def _stop(parent: subprocess.Popen[bytes]) -> None:
    """Kill the parent and its ranks, which are one process group, and wait until the last has let go of its end of the pipe."""
    with suppress(ProcessLookupError):
        os.killpg(parent.pid, signal.SIGKILL)
    with parent:  # closes the pipes and waits
        assert parent.stdout is not None
        while parent.stdout.read(2**16):
            pass
