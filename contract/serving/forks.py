"""The nursery's process: imports vLLM, then reads a job a line and forks its ranks, each of which calls `run(job, rank)` of the job's
module and writes what it returns. Answers `{"failed": ...}`, "" = none."""

import ctypes
import faulthandler
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

PR_SET_PDEATHSIG = 1
MODELS = ("TransformersMoEForCausalLM", "OlmoeForCausalLM", "Qwen3MoeForCausalLM")
"""That jobs may run."""


def main():
    _die_with_the_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM logs to standard output
    _import_vllm()
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps({"failed": run(job)}), file=answers, flush=True)
    os._exit(0)  # the tests are over


def _die_with_the_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _import_vllm():
    """What every rank needs, once. Plug-ins are left to the ranks: they go by the environment."""
    import vllm.distributed.eplb.eplb_state
    import vllm.entrypoints.llm
    import vllm.model_executor.layers.fused_moe.experts.cpu_moe
    import vllm.v1.core.sched.scheduler
    import vllm.v1.engine.core
    import vllm.v1.worker.cpu_worker  # noqa: F401
    from vllm.model_executor.models import ModelRegistry

    for name in MODELS:  # a model that was not imported, vLLM inspects in a process of its own, in each rank
        ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())


def run(job):
    """Fork the ranks and wait for all of them. Returns what went wrong, "" = nothing."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {}
    with selectors.DefaultSelector() as waiting:
        for rank in range(job["ranks"]):
            pid = os.fork()
            if not pid:
                _be_a_rank(job, rank, port)
            ranks[rank] = pid
            waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, rank)
        failed, ends = "", time.monotonic() + job["timeout"]
        while ranks and not failed:
            done = waiting.select(max(0, ends - time.monotonic()))
            if not done:
                failed = f"not done after {job['timeout']} s"
            for key, _ in done:
                waiting.unregister(key.fd)
                os.close(key.fd)
                _, status = os.waitpid(ranks.pop(key.data), 0)
                if status and not failed:
                    failed = f"rank {key.data} ended with {os.waitstatus_to_exitcode(status)}"
        for pid in ranks.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for key in list(waiting.get_map().values()):
            os.close(key.fd)
    return failed


def _be_a_rank(job, rank, port):
    """In the child: never returns."""
    code = 1
    try:
        _die_with_the_parent()
        log = os.open(Path(job["folder"]) / f"rank{rank}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        faulthandler.dump_traceback_later(max(1, job["timeout"] - 5), file=2)
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["ranks"], "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in places.items()} | job["environment"])
        found = importlib.import_module(job["module"]).run(job, rank)
        (Path(job["folder"]) / f"rank{rank}.json").write_text(json.dumps(found))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # no farewell of process groups: the others may be gone


if __name__ == "__main__":
    main()
