"""`v1/worker/cpu/shm.py` (line 61) sets a `torch.Event` without `elapsed_time`, by which `EplbState.rearrange` times itself, and
`torch.accelerator` has no streams on CPU, for which `distributed/eplb/rebalance_execute.py` asks: a clock, and streams that are always done.
"""

import time

import torch


class Event:
    """An event of work that is done when it is called."""

    def __init__(self, *_, **__):
        self.at = 0.0

    def record(self, *_, **__):
        self.at = time.perf_counter()

    def wait(self, *_):
        pass

    def synchronize(self):
        pass

    def query(self):
        return True

    def elapsed_time(self, later):
        """Milliseconds."""
        return (later.at - self.at) * 1000


class Stream:
    """A stream whose work is always done."""

    def synchronize(self):
        pass

    def wait_stream(self, _):
        pass


def install():
    import vllm.v1.worker.cpu.shm  # noqa: F401 - sets its own event when it is imported, so that must be first

    torch.Event = Event
    stream = Stream()
    torch.accelerator.current_stream = lambda *_: stream
    torch.accelerator.set_stream = lambda *_: None
    torch.accelerator.current_device_index = lambda *_: 0
