"""The parent of local ranks: `python -m grace_moe.runtime.job.rank_parent FOLDER RANKS`, started by `local_ranks.starting_ranks`.

To import torch, Transformers and a model's class takes a rank seconds, and ranks share the cores. So one process imports, and forks the
ranks. It forks only while it has one thread and no GPU is in sight, as CUDA and other threads don't survive a fork. Else it starts each
rank as a process of its own (`worker`).

Standard input brings the job (`worker.receive_job`), standard output takes `events`; whatever is printed goes to the log.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from grace_moe.runtime.job.events import tell
from grace_moe.runtime.job.failure import log_of
from grace_moe.runtime.job.worker import leave_without_launcher, receive_job, send_job, watch_launcher, work

_IMPORTED = ("torch", "transformers", "transformers.modeling_utils", "grace_moe.runtime.job.local_rank")
"""Whatever the model is; between any two of them a launcher that is gone is noticed."""
_THREADS = Path("/proc/self/task")


def main(folder: Path, num_ranks: int) -> NoReturn:
    """Start the ranks, tell how each ends, and end after the last."""
    launcher, events = sys.stdin.buffer, os.dup(1)
    os.dup2(2, 1)
    for module in _IMPORTED:
        if _hung_up(launcher.fileno()):
            leave_without_launcher(folder)
        importlib.import_module(module)
    job = receive_job(launcher)
    if job is None:
        leave_without_launcher(folder)
    _import_model(job)
    if _can_fork():
        rank_of = {_fork(rank, num_ranks, job, folder, events): rank for rank in range(num_ranks)}
    else:
        workers = [_spawn(rank, num_ranks, job, folder, events) for rank in range(num_ranks)]
        rank_of = {worker.pid: rank for rank, worker in enumerate(workers)}
    watch_launcher(folder)
    for _ in range(num_ranks):
        pid, status = os.wait()
        tell(events, ended=[rank_of[pid], os.waitstatus_to_exitcode(status)])
    os._exit(0)


def rank_variables(rank: int, num_ranks: int) -> dict[str, str]:
    """What tells a local rank who it is."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks)}


def _hung_up(pipe: int) -> bool:
    """Whether nobody holds the other end any more."""
    poll = select.poll()
    poll.register(pipe, 0)
    return any(state & select.POLLHUP for _, state in poll.poll(0))


def _import_model(job: bytes) -> None:
    """The class of the job's model, and Transformers' table of how checkpoints differ from it, which takes a rank half a second to make.
    Whatever is wrong with the model, the ranks say."""
    import transformers
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from grace_moe.runtime.model.reading import read_model_json

    with suppress(Exception):
        config = read_model_json(Path(json.loads(job)["model"], "config.json"))
        get_checkpoint_conversion_mapping(config["model_type"])
        for name in config["architectures"]:
            getattr(transformers, name)


def _can_fork() -> bool:
    import torch

    return _THREADS.is_dir() and len(list(_THREADS.iterdir())) == 1 and not torch.cuda.is_available()


def _fork(rank: int, num_ranks: int, job: bytes, folder: Path, events: int) -> int:
    """The process id of a rank, which goes on from where this process is."""
    pid = os.fork()
    if pid:
        return pid
    try:
        with open(log_of(folder, rank), "wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.environ.update(rank_variables(rank, num_ranks))
        work(job, folder, events)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(1)


def _spawn(rank: int, num_ranks: int, job: bytes, folder: Path, events: int) -> subprocess.Popen[bytes]:
    """A rank that imports for itself. It lives no longer than this process, which holds its standard input."""
    with open(log_of(folder, rank), "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "grace_moe.runtime.job.worker", str(folder), str(events)],
            env=dict(os.environ, **rank_variables(rank, num_ranks)),
            stdin=subprocess.PIPE,
            bufsize=0,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(events,),
        )
    send_job(job, process)
    return process


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
