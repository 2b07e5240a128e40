"""The nursery's process: imports vLLM, then reads a job a line and forks its ranks, each of which calls `run(job, rank)` of the job's
module and writes what it returns. Answers `{"failed": ...}`, "" = none. A job that `stays` is one process, which goes on beside the jobs
that follow: the answer is `{"pid": ...}`, and a line `{"end": pid}` ends it with all that it started."""

import ctypes
import faulthandler
import gc
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
IMPORTED = (
    "vllm.distributed.device_communicators.all2all",
    "vllm.distributed.device_communicators.cpu_communicator",
    "vllm.distributed.eplb.eplb_state",
    "vllm.entrypoints.llm",
    "vllm.model_executor.layers.fused_moe.experts.cpu_moe",
    "vllm.model_executor.layers.quantization.online.base",
    "vllm.plugins.lora_resolvers.filesystem_resolver",
    "vllm.plugins.lora_resolvers.hf_hub_resolver",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "transformers.models.olmoe.modeling_olmoe",
    "cpu_ep",
    "grace_moe.engines.vllm.plugin",
    "grace_moe.engines.vllm.model_choice",
    "grace_moe.engines.vllm.sampled",
)
"""What vLLM, its plug-ins and the embedded model import in each rank."""
MODELS = ("TransformersMoEForCausalLM", "OlmoeForCausalLM", "Qwen3MoeForCausalLM")
"""That jobs may run."""


def main():
    _die_with_the_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM logs to standard output
    _import_vllm()
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), file=answers, flush=True)
    os._exit(0)  # the tests are over


def _die_with_the_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _import_vllm():
    """What every rank needs, once. Plug-ins are imported, too, but it is ranks that call them: they go by the environment."""
    for name in IMPORTED:
        importlib.import_module(name)
    from vllm.model_executor.models import ModelRegistry

    for name in MODELS:  # a model that was not imported, vLLM inspects in a process of its own, in each rank
        ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())
    gc.collect()
    gc.freeze()  # vLLM collects garbage several times a start, and a rank need not look through all that was imported


def _answer(asked):
    if "end" in asked:
        os.killpg(asked["end"], signal.SIGKILL)
        os.waitpid(asked["end"], 0)
        return {}
    if not asked.get("stays"):
        return {"failed": run(asked)}
    pid = os.fork()
    if not pid:
        _be_a_rank(asked, 0, {})
    os.setpgid(pid, pid)
    return {"pid": pid}


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
                places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["ranks"], "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                _be_a_rank(job, rank, places)
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


def _be_a_rank(job, rank, places):
    """In the child: never returns."""
    code = 1
    try:
        _die_with_the_parent()
        log = os.open(Path(job["folder"]) / f"rank{rank}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if not job.get("stays"):
            faulthandler.dump_traceback_later(max(1, job["timeout"] - 5), file=2)
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
