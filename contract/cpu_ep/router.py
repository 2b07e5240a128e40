"""`fused_moe/router/base_router.py` has the kernel that picks replicas and counts loads for Triton devices only; on CPU its `else:` returns
logical ids as if they were slots. Here is the same rule in torch: the token's number, hashed as there, modulo the number of replicas.
"""

import torch
import vllm.model_executor.layers.fused_moe.router.base_router as base_router

MULTIPLIER = 2654435769
"""Knuth's, of `_eplb_map_and_record_i32_kernel`."""


def eplb_map_to_physical_and_record(
    topk_ids, expert_load_view, logical_to_physical_map, logical_replica_count, record_enabled, num_unpadded_tokens=None
):
    """`[tokens, k]` slots of `[tokens, k]` experts; adds the pairs of real tokens to `expert_load_view` `[slots]` where that is on."""
    ids = topk_ids.long()
    hashed = (torch.arange(len(ids)) * MULTIPLIER & 0xFFFFFFFF)[:, None]
    slots = logical_to_physical_map[ids, hashed % logical_replica_count[ids].clamp(min=1)]
    if bool(record_enabled):
        real = len(ids) if num_unpadded_tokens is None else min(len(ids), int(num_unpadded_tokens))
        counted = slots[:real].flatten()
        expert_load_view.scatter_add_(0, counted, torch.ones_like(counted, dtype=expert_load_view.dtype))
    return slots.to(topk_ids.dtype)


def install():
    base_router.eplb_map_to_physical_and_record = eplb_map_to_physical_and_record
