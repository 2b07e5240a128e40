"""A process that has imported vLLM, and forks the ranks of one job after another: importing takes longer than all else.

Nothing outlives it: it and its ranks are one process group that ends with the tests, ranks die with it, and jobs write only into the
folder that they are given.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from serving.job import Job, Outcome

HERE = Path(__file__).parents[1]


class RankError(AssertionError):
    """A rank failed or took too long; the message ends with what it said last."""


class Nursery:
    """Runs jobs. Jobs that are alike run once."""

    def __init__(self, folder):
        self.folder = folder
        self.outcomes: dict[str, Outcome] = {}
        self.process = None

    def run(self, job: Job) -> Outcome:
        """What comes of a job. Raises RankError where a rank fails."""
        if job.key() not in self.outcomes:
            self.outcomes[job.key()] = self._run(job)
        return self.outcomes[job.key()]

    def call(self, module, *, ranks=1, environment=None, timeout=300, **arguments):
        """What `run(job, rank)` of a module returns in each of some forked ranks; `job["arguments"]` are these."""
        job = {"ranks": ranks, "environment": environment or {}, "timeout": timeout, "arguments": arguments}
        return self._forked(module, job)[0]

    @contextlib.contextmanager
    def running(self, module, *, environment=None, **arguments):
        """`run(job, 0)` of a module in a forked process, of which nothing is left after the block. Gives its id and its log."""
        folder = self._folder()
        job = {"stays": True, "module": module, "folder": str(folder), "environment": environment or {}, "arguments": arguments}
        pid = self._ask(job)["pid"]
        try:
            yield pid, folder / "rank0.log"
        finally:
            self._ask({"end": pid})

    def _run(self, job):
        ranks, logs = self._forked("serving.rank", asdict(job))
        tokens = [ranks[i % job.ranks].pop(f"tokens{i}") for i in range(len(job.prompts))]
        return Outcome(tokens=tokens, ranks=ranks, logs=logs)

    def _forked(self, module, job):
        """What each rank returned, and its log."""
        folder = self._folder()
        failed = self._ask(job | {"module": module, "folder": str(folder)})["failed"]
        logs = [(folder / f"rank{rank}.log").read_text(errors="replace") for rank in range(job["ranks"])]
        if failed:
            last = "\n".join(f"--- rank {rank}\n{log[-3000:]}" for rank, log in enumerate(logs))
            raise RankError(f"{failed}; logs are in {folder}\n{last}")
        return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(job["ranks"])], logs

    def _folder(self):
        folder = self.folder / f"job{len(list(self.folder.iterdir()))}"
        folder.mkdir()
        return folder

    def _ask(self, what):
        """The answer of the nursery's process. Raises RankError: it died."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RankError("the nursery died")
        return json.loads(answer)

    def start(self):
        """Start the process, which imports vLLM while this one goes on."""
        # contract/ for our own modules, and for the plug-in of cpu_ep-0.dist-info that vLLM finds there.
        path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "serving.forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
        )

    def close(self):
        """End the process and all that it started."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.process = None
