"""`GRACE_MOE_DISPATCH=hierarchical`: tokens go to each node once, instead of everywhere by all-gather and reduce-scatter.

For clusters without DeepEP: it needs gloo or NCCL alone. It stands behind vLLM's seam for dispatch and combine,
`FusedMoEPrepareAndFinalizeModular`, in place of `allgather_reducescatter`, and counts what it sends. Read in vLLM 0.32.0
(docs/engines/vllm.md).
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import torch

from grace_moe.engines.live.live_plan import LivePlan
from grace_moe.engines.vllm.two_stages import Rows, TwoStages
from grace_moe.errors import UsageError
from grace_moe.placement import Placement
from grace_moe.topology import Topology

DISPATCH = "GRACE_MOE_DISPATCH"
LOG = logging.getLogger("vllm.grace_moe")

_layers: list[TwoStages] = []
"""One a MoE layer of this process, in the order in which vLLM makes them: the model's."""


def hierarchical() -> bool:
    """Whether the environment asks for the hierarchical dispatch.

    Raises:
        UsageError: it asks for another.
    """
    value = os.environ.get(DISPATCH, "")
    if value not in ("", "hierarchical"):
        raise UsageError(f"{DISPATCH}={value!r}: set it to hierarchical, or unset it for vLLM's own")
    return value == "hierarchical"


def sent() -> list[dict[str, int]]:
    """What this rank's tokens cost so far, by MoE layer: `tokens`, `copies` to other nodes and `pairs` there. Padding, warm-up and the
    steps that a rank without requests goes along with are left out."""
    return [layer.sent.to_dict() for layer in _layers]


def install(live: LivePlan | None) -> None:
    """Stand in for all-gather and reduce-scatter wherever vLLM makes a kernel. Idempotent.

    A kernel that can't go hierarchically fails the start with a UsageError that says why: it was asked for.
    """
    from vllm.model_executor.layers.fused_moe import all2all_utils

    plain = all2all_utils.maybe_make_prepare_finalize
    if getattr(plain, "stands_in", False):
        return

    def make(moe: Any, *arguments: Any, **named: Any) -> Any:
        """See vLLM's function of this name."""
        made = plain(moe, *arguments, **named)
        return _stand_in(made, moe, live) if moe.moe_parallel_config.use_all2all_kernels else made

    make.stands_in = True  # type: ignore[attr-defined]
    for module in list(sys.modules.values()):  # each kind of kernel has imported it by name
        if getattr(module, "__dict__", {}).get("maybe_make_prepare_finalize") is plain:
            module.maybe_make_prepare_finalize = make  # type: ignore[attr-defined]


def _stand_in(made: Any, moe: Any, live: LivePlan | None) -> Any:
    """Ours for vLLM's. Raises UsageError where it can't be."""
    from vllm.distributed.parallel_state import get_ep_group, get_node_count

    reason = _why_not(made, moe)
    if reason:
        raise UsageError(f"{DISPATCH}=hierarchical: {reason}; mend that, or unset it")
    ranks = get_ep_group()
    stages = TwoStages(
        group=ranks.device_group,
        topology=_topology(live, ranks.world_size, get_node_count()),
        rank=ranks.rank_in_group,
        slots_per_rank=moe.num_experts // ranks.world_size,
        device=ranks.device,
    )
    if not _layers:
        LOG.info("GRACE-MoE: tokens go to each node once, by %s ranks", stages.topology.shape)
    _layers.append(stages)
    return _prepare_and_finalize(stages)


def _why_not(made: Any, moe: Any) -> str:
    """What keeps a kernel from this dispatch; "" = nothing."""
    from vllm.config import get_current_vllm_config
    from vllm.model_executor.layers.fused_moe.prepare_finalize.naive_dp_ep import MoEPrepareAndFinalizeNaiveDPEPModular

    config = get_current_vllm_config()
    if not moe.moe_parallel_config.use_ag_rs_all2all_kernels:
        return f"it stands in for all2all_backend allgather_reducescatter, and this is {moe.moe_parallel_config.all2all_backend}"
    if type(made) is not MoEPrepareAndFinalizeNaiveDPEPModular:
        return "this kernel routes by itself, after tokens are gathered"
    if config.parallel_config.tensor_parallel_size > 1 or config.parallel_config.prefill_context_parallel_size > 1:
        return "tokens must be of one rank each: use data parallelism alone"
    if config.parallel_config.enable_elastic_ep or moe.is_lora_enabled:
        return "elastic expert parallelism and LoRA have a dispatch of their own"
    if config.compilation_config.cudagraph_mode.name != "NONE" and config.device_config.device_type != "cpu":
        return "its splits are known on the host alone, which no CUDA graph can hold; start with --enforce-eager"
    return ""


def _topology(live: LivePlan | None, ranks: int, nodes: int) -> Topology:
    """The plan's nodes, where it declares any for so many ranks; else vLLM's."""
    if live is not None and isinstance(live.planned, Placement) and live.planned.topology.num_devices == ranks:
        return live.planned.topology
    nodes = nodes if ranks % nodes == 0 else 1
    return Topology.parse(f"{nodes}x{ranks // nodes}")


def _real_tokens(tokens: int) -> int:
    """How many of a batch's rows are requests' tokens: padding comes last, and warm-up and idle steps have no attention to compute."""
    from vllm.forward_context import get_forward_context, is_forward_context_available

    metadata = get_forward_context().attn_metadata if is_forward_context_available() else None
    if not metadata:
        return 0
    first = next(iter(metadata.values())) if isinstance(metadata, dict) else metadata
    return min(tokens, int(getattr(first, "num_actual_tokens", tokens)))


def _prepare_and_finalize(stages: TwoStages) -> Any:
    """The stages as vLLM's kernels call them: what is theirs to do with the rows here (quantise, weigh, sum) their own class does."""
    import vllm.model_executor.layers.fused_moe.modular_kernel as kernel
    from vllm.model_executor.layers.fused_moe.prepare_finalize.no_dp_ep import MoEPrepareAndFinalizeNoDPEPModular

    local = MoEPrepareAndFinalizeNoDPEPModular()

    class HierarchicalPrepareAndFinalize(kernel.FusedMoEPrepareAndFinalizeModular):
        """See vLLM's base class; `topk_ids` are physical slots."""

        activation_format = property(lambda self: local.activation_format)

        def topk_indices_dtype(self) -> torch.dtype | None:
            return None

        def max_num_tokens_per_rank(self) -> int | None:
            return None

        def num_dispatchers(self) -> int:
            return stages.topology.num_devices

        def output_is_reduced(self) -> bool:
            return True

        def prepare(self, a1: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor, *rest: Any, **named: Any) -> Any:
            """Dispatch, then vLLM's own preparation of the rows that came."""
            rows = stages.dispatch(Rows(hidden=a1, slots=topk_ids, weights=topk_weights), _real_tokens(len(a1)))
            hidden, scale, *_ = local.prepare(rows.hidden, rows.weights, rows.slots, *rest, **named)
            return hidden, scale, None, rows.slots, rows.weights

        def finalize(self, output: torch.Tensor, fused_expert_output: torch.Tensor, topk_weights: torch.Tensor, *rest: Any) -> None:
            """vLLM's own sums of the rows here, then combine."""
            sums = output.new_empty((len(topk_weights), output.shape[1]))
            if len(sums):
                local.finalize(sums, fused_expert_output, topk_weights, *rest)
            output.copy_(stages.combine(sums))

    return HierarchicalPrepareAndFinalize()
