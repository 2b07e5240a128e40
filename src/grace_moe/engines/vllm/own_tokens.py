"""Where ranks may choose replicas apart: with each all-to-all backend of vLLM (read in 0.32.0)."""

from __future__ import annotations

from typing import Any

from grace_moe.engines.vllm import dispatch

ONCE_A_NODE = ("deepep_high_throughput", "deepep_v2", "mori_high_throughput")
"""`all2all_backend`s that send a token to a node once, however many of its experts are there."""
OWN_TOKENS = (
    *ONCE_A_NODE,
    "deepep_low_latency",
    "mori_low_latency",
    "nixl_ep",
    "flashinfer_nvlink_one_sided",
    "flashinfer_nvlink_two_sided",
)
"""`all2all_backend`s with which each rank routes its own tokens and no others. The default, `allgather_reducescatter`, gathers before
routing in some of vLLM's kernels, and sends every token everywhere in all of them."""


def routes_own_tokens(parallel_config: Any) -> bool:
    """Whether each rank routes its own tokens alone, so that a choice of replicas by rank computes every pair exactly once."""
    sharded = parallel_config.tensor_parallel_size == 1 or parallel_config.use_sequence_parallel_moe
    context = getattr(parallel_config, "prefill_context_parallel_size", 1) == 1
    apart = parallel_config.all2all_backend in OWN_TOKENS or dispatch.hierarchical()
    return bool(parallel_config.data_parallel_size > 1 and sharded and context and apart)


def why_not(parallel_config: Any) -> str:
    """Why replicas are not ours to choose, for the log."""
    backends = ", ".join(OWN_TOKENS)
    return (
        f"all2all_backend {parallel_config.all2all_backend} and data parallelism of {parallel_config.data_parallel_size}: ranks may choose "
        f"replicas apart only where each routes its own tokens (with data parallelism and {dispatch.DISPATCH}=hierarchical or {backends})"
    )


def best_choice(parallel_config: Any) -> str:
    """The choice of replicas that spares most of what the backend sends: all of a token's experts together where a node is sent one copy,
    else each expert's nearest."""
    once = parallel_config.all2all_backend in ONCE_A_NODE or dispatch.hierarchical()
    return "joint" if once else "near"
