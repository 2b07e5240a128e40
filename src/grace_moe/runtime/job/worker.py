"""One local rank: `python -m grace_moe.runtime.job.worker FOLDER`, started by `launch.run_local`.

Standard input brings the job, so that no prompt stands in a file, and stays open as long as the launcher lives. Its end is how a rank
learns, whatever happened to the launcher, that nobody will stop it. It is watched before torch is imported.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import BinaryIO, NoReturn

from grace_moe.runtime.job.folder import remove_folder


def main(folder: Path, launcher: BinaryIO) -> NoReturn:
    """Do the job that `launcher` sends; the exit code is the error's kind."""
    job = receive_job(launcher)
    if job is None:
        _leave_without_launcher(folder)
    threading.Thread(target=_watch, args=(launcher, folder), daemon=True).start()
    from grace_moe.runtime.job.local_rank import do_job

    os._exit(do_job(job, folder))


def receive_job(launcher: BinaryIO) -> bytes | None:
    """What `launch.hand_over` wrote: the job's length on a line of its own, then the job. None where it ended before."""
    line = launcher.readline()
    job = launcher.read(int(line)) if line.endswith(b"\n") else b""
    return job if line.endswith(b"\n") and len(job) == int(line) else None


def _watch(launcher: BinaryIO, folder: Path) -> None:
    while launcher.read(1):
        pass
    _leave_without_launcher(folder)


def _leave_without_launcher(folder: Path) -> NoReturn:
    remove_folder(folder)
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.stdin.buffer)
