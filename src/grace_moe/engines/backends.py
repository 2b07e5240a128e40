"""How engines call the all-to-all backend that a plan is for, in the commands that `export` prints.

Names are those of `plan --backend`. A plan that names none was made for one copy of a token a node, as DeepEP's high-throughput kernels
send it. What each backend sends is on the engines' pages (docs/engines/vllm.md#which-backend-gains-what).
"""

from __future__ import annotations

from grace_moe.cost.sent import SENDS
from grace_moe.errors import UsageError

VLLM = {
    "": "deepep_high_throughput",
    "hierarchical": "allgather_reducescatter --enforce-eager",
    "deepep_high_throughput": "deepep_high_throughput",
    "flat": "deepep_high_throughput",
    "deepep_low_latency": "deepep_low_latency",
    "vanilla": "deepep_low_latency",
    "nixl_ep": "nixl_ep",
    "allgather": "allgather_reducescatter",
    "allgather_reducescatter": "allgather_reducescatter",
}
"""Backend -> vLLM's `--all2all-backend`, with what our hierarchical dispatch, which stands in for one of them, wants besides."""
_STATIC, _DYNAMIC = " --ep-dispatch-algorithm static", " --ep-dispatch-algorithm dynamic"
SGLANG = {
    "": "deepep --deepep-mode auto" + _STATIC,
    "hierarchical": "deepep --deepep-mode auto" + _STATIC,
    "deepep_high_throughput": "deepep --deepep-mode normal" + _STATIC,
    "flat": "deepep --deepep-mode auto" + _STATIC,
    "deepep_low_latency": "deepep --deepep-mode low_latency" + _STATIC,
    "vanilla": "deepep --deepep-mode low_latency" + _STATIC,
    "nixl_ep": "nixl" + _STATIC,
    "allgather": "none" + _DYNAMIC,
    "allgather_reducescatter": "none" + _DYNAMIC,
}
"""Backend -> SGLang's `--moe-a2a-backend`, with the mode and the choice of replicas that go with it."""


def flags_of(table: dict[str, str], backend: str, source: str) -> tuple[str, tuple[str, ...]]:
    """The engine's words for a backend, and notes on what it can gain.

    Raises:
        UsageError: the plan names a backend that is not known.
    """
    if backend not in table:
        raise UsageError(
            f"{source}: planned for the backend {backend!r}, which is unknown; plan with one of {', '.join(filter(None, table))}"
        )
    notes = (
        ("this backend sends every token to every rank: the plan balances, and saves no traffic",)
        if SENDS.get(backend) == "everything"
        else ()
    )
    return table[backend], notes
