"""One local rank: `python -m grace_moe.runtime.job.worker FOLDER`, started by `launch.run_local`."""

import logging
import os
import sys
import threading
import time
from pathlib import Path

from transformers.utils import logging as transformers_logging

from grace_moe.errors import GraceError
from grace_moe.runtime.job.job import Job
from grace_moe.runtime.job.on_rank import run_on_rank
from grace_moe.runtime.job.ranks import joined, leave
from grace_moe.runtime.job.results import save_results


def main(folder: Path) -> int:
    """Do the job in `folder`; the exit code is the error's kind."""
    _leave_with_parent()
    logging.basicConfig(level=logging.WARNING)
    transformers_logging.disable_progress_bar()
    try:
        job = Job.load(folder / "job.json")
        with joined(rendezvous_file=str(folder / "rendezvous")) as member:
            results = run_on_rank(job, member, on_run=lambda name: _note(folder, name))
            if member.rank == 0:
                save_results(results, folder)
    except GraceError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


def _leave_with_parent() -> None:
    """End this rank when the process that started it is gone, however it went: nobody would stop it."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _note(folder: Path, status: str) -> None:
    (folder / "status").write_text(status)


if __name__ == "__main__":
    leave(main(Path(sys.argv[1])))
