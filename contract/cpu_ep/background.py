"""`distributed/eplb/async_worker.py` (line 25) starts the thread that moves experts beside the passes on an accelerator's own stream, and
`v1/worker/gpu_model_runner.py` (line 5172) has it started once a model is loaded. On CPU neither is there: here is the thread, with a stream
that is always done, for the same loop of vLLM's.
"""

import threading

from vllm.distributed.eplb import async_worker, eplb_state
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from cpu_ep.streams import Stream


def start_async_worker(state, is_profile=False):
    """See vLLM's function of this name."""
    named = {"state": state, "stream": Stream(), "is_profile": is_profile}
    thread = threading.Thread(target=async_worker.transfer_run_periodically, kwargs=named, daemon=True)
    thread.start()
    return thread


def install():
    load = CPUModelRunner.load_model

    def load_model(self, *arguments, **named):
        load(self, *arguments, **named)
        if self.parallel_config.enable_eplb and self._moe_model is not None:
            self.eplb_state.start_async_loop()  # nothing where rearrangements are synchronous

    eplb_state.start_async_worker = start_async_worker
    CPUModelRunner.load_model = load_model
