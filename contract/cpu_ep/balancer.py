"""`v1/worker/cpu_model_runner.py` loads a model without telling EPLB of it, as `v1/worker/gpu_model_runner.py` (lines 5045 to 5130) does."""

from vllm.distributed.eplb import eplb_state
from vllm.model_executor.models.interfaces import get_mixture_of_experts_model
from vllm.v1.worker.cpu_model_runner import CPUModelRunner


def install():
    load = CPUModelRunner.load_model

    def load_model(self, *arguments, **named):
        if self.parallel_config.enable_eplb:
            self.eplb_state = eplb_state.EplbState(self.parallel_config, self.device)
        load(self, *arguments, **named)
        if self.parallel_config.enable_eplb:
            self._moe_model = get_mixture_of_experts_model(self.model)
            if self._moe_model is not None:
                self.eplb_state.add_model(self._moe_model, self.model_config)

    CPUModelRunner.load_model = load_model
