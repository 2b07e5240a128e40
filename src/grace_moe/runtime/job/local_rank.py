"""The job of one rank that our own launcher started."""

from __future__ import annotations

import logging
import sys
import traceback
from pathlib import Path

from transformers.utils import logging as transformers_logging

from grace_moe.errors import GraceError
from grace_moe.runtime.job.job import Job
from grace_moe.runtime.job.on_rank import run_on_rank
from grace_moe.runtime.job.ranks import joined
from grace_moe.runtime.job.results import save_results


def do_job(job: bytes, folder: Path) -> int:
    """Do the job; rank 0 leaves the results in the folder. Returns the exit code: of an error of ours its kind, else 1."""
    logging.basicConfig(level=logging.WARNING)
    transformers_logging.disable_progress_bar()
    code = 0
    try:
        with joined(rendezvous_file=str(folder / "rendezvous")) as member:
            results = run_on_rank(Job.from_json(job), member, on_run=lambda name: _note(folder, name))
            if member.rank == 0:
                save_results(results, folder)
    except GraceError as error:
        sys.stderr.write(f"error: {error}\n")
        code = error.exit_code
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _note(folder: Path, status: str) -> None:
    (folder / "status").write_text(status)
