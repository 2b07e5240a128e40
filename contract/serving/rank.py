"""One rank of a job, in a process of its own."""

import importlib
import os

ENGINE = {
    "dtype": "float32",
    "max_model_len": 256,
    "max_num_seqs": 8,
    "enforce_eager": True,
    "seed": 0,
    "kv_cache_memory_bytes": 2**26,
    "disable_log_stats": True,
}
EPLB = {"window_size": 1, "step_interval": 8, "use_async": False}


def run(job, rank):
    """Start vLLM, serve this rank's prompts, and say what came of it."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    probes = [importlib.import_module(name) for name in ("serving.watch", *job["probes"])]
    from vllm import LLM, SamplingParams
    from vllm.plugins import load_general_plugins

    load_general_plugins()  # as every process of vLLM does at its start, and before the probes, which look at what is in force
    for probe in probes:
        probe.install()
    llm = LLM(job["model"], **(ENGINE | _parallel(job) | job["engine"]))
    worker = llm.llm_engine.model_executor.driver_worker.worker
    for probe in probes:
        if hasattr(probe, "started"):
            probe.started(worker)
    mine = range(rank, len(job["prompts"]), job["ranks"])
    sampling = SamplingParams(max_tokens=job["new_tokens"], temperature=0.0, ignore_eos=True)
    answers = llm.generate([{"prompt_token_ids": job["prompts"][i]} for i in mine], sampling, use_tqdm=False)
    found = {f"tokens{i}": list(answer.outputs[0].token_ids) for i, answer in zip(mine, answers, strict=True)}
    for probe in probes:
        found |= probe.report(worker)
    return found


def _parallel(job):
    if job["ranks"] == 1:
        return {}
    return {
        "data_parallel_size": job["ranks"],
        "distributed_executor_backend": "external_launcher",
        "enable_expert_parallel": True,
        "enable_eplb": True,
        "eplb_config": EPLB | job["eplb"],
    }
