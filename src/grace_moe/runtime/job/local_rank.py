"""The job of one rank that our own launcher started."""

from __future__ import annotations

import logging
import sys
import traceback
from datetime import timedelta
from functools import partial
from pathlib import Path

from transformers.utils import logging as transformers_logging

from grace_moe.errors import GraceError
from grace_moe.runtime.job.events import SILENT, Listener, tell, tell_tokens
from grace_moe.runtime.job.job import Job
from grace_moe.runtime.job.on_rank import run_on_rank
from grace_moe.runtime.job.ranks import joined
from grace_moe.runtime.job.results import save_results
from grace_moe.runtime.model.reading import is_fault


def do_job(data: bytes, folder: Path, events: int | None) -> int:
    """Do the job; rank 0 leaves the results in the folder. Returns the exit code: of an error of ours its kind, else 1.

    Args:
        events: a pipe for `events.tell`, where somebody reads it.
    """
    logging.basicConfig(level=logging.WARNING)
    transformers_logging.disable_progress_bar()
    code = 0
    try:
        job = Job.from_json(data)
        with joined(rendezvous_file=str(folder / "rendezvous"), timeout=timedelta(seconds=job.timeout_seconds)) as member:
            results = run_on_rank(job, member, SILENT if events is None else _told_through(events))
            if member.rank == 0:
                save_results(results, folder)
    except GraceError as error:
        if is_fault(error.__cause__):
            traceback.print_exc()
        sys.stderr.write(f"error: {error}\n")
        code = error.exit_code
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _told_through(events: int) -> Listener:
    return Listener(
        on_run=lambda name: tell(events, run=name),
        on_tokens=partial(tell_tokens, events),
        on_metrics=lambda port: tell(events, metrics=port),
    )
