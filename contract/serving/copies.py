"""A probe: what each MoE layer sent to other nodes, by the hierarchical dispatch's own count."""

from grace_moe.engines.vllm import dispatch


def install():
    """Nothing: the dispatch counts by itself."""


def report(worker):
    """`sent`: `tokens`, `copies` and `pairs` of each MoE layer."""
    return {"sent": dispatch.sent()}
