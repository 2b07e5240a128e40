"""One local rank: what it does once it is a process. `rank_parent` forks it, or runs `python -m grace_moe.runtime.job.worker FOLDER PIPE`.

Standard input brings the job, so that no prompt stands in a file, and stays open as long as the launcher lives. Its end is how a rank
learns, whatever happened to the launcher, that nobody will stop it. It is watched before torch is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NoReturn

from grace_moe.runtime.job.folder import remove_folder


def main(folder: Path, launcher: BinaryIO, events: int | None) -> NoReturn:
    """Do the job that `launcher` sends; the exit code is the error's kind."""
    job = receive_job(launcher)
    if job is None:
        leave_without_launcher(folder)
    work(job, folder, events)


def work(job: bytes, folder: Path, events: int | None) -> NoReturn:
    """Do the job, as long as standard input is open; the exit code is the error's kind.

    Args:
        events: a pipe for `events.tell`, where somebody reads it.
    """
    watch_launcher(folder)
    from grace_moe.runtime.job.local_rank import do_job

    os._exit(do_job(job, folder, events))


def send_job(job: bytes, process: subprocess.Popen[bytes]) -> None:
    """Give a process its job: the length on a line of its own, then the job. The pipe stays open, and so the process lives."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it ended: its exit code tells more
        process.stdin.write(b"%d\n" % len(job))
        rest = memoryview(job)
        while rest:
            rest = rest[process.stdin.write(rest) :]


def receive_job(launcher: BinaryIO) -> bytes | None:
    """What `send_job` wrote. None where it ended before."""
    line = launcher.readline()
    job = launcher.read(int(line)) if line.endswith(b"\n") else b""
    return job if line.endswith(b"\n") and len(job) == int(line) else None


def watch_launcher(folder: Path) -> None:
    """End this process when its standard input ends, from a thread of its own."""
    threading.Thread(target=_watch, args=(folder,), daemon=True).start()


def leave_without_launcher(folder: Path) -> NoReturn:
    """End this process, and take the job's folder along."""
    remove_folder(folder)
    os._exit(1)


def _watch(folder: Path) -> None:
    while os.read(0, 1):
        pass
    leave_without_launcher(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.stdin.buffer, int(sys.argv[2]) if len(sys.argv) > 2 else None)
