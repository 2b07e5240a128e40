"""A job on local ranks, from start to results."""

from __future__ import annotations

from grace_moe.runtime.job.events import SILENT, Listener
from grace_moe.runtime.job.job import Job
from grace_moe.runtime.job.local_ranks import StartingRanks, starting_ranks
from grace_moe.runtime.job.results import RunResult, load_results


def run_local(job: Job, num_ranks: int, *, listener: Listener = SILENT) -> tuple[RunResult, ...]:
    """Run the job on `num_ranks` processes of this machine. However this process ends, none of them stays, nor a file of theirs.

    Raises:
        RankError: a rank died; the others were stopped.
        GraceError: a rank refused the job, of the kind that it raised.
    """
    with starting_ranks(num_ranks) as ranks:
        return run_on(ranks, job, listener)


def run_on(ranks: StartingRanks, job: Job, listener: Listener = SILENT) -> tuple[RunResult, ...]:
    """Run the job on ranks that were started before; they take one. Raises as `run_local`."""
    ranks.do(job.to_json(), listener)
    return load_results(ranks.folder)
