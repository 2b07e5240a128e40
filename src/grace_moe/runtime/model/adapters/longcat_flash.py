"""LongCat-Flash: ids from the number of experts on are identity experts, which have no weights and are computed where the token is."""

from __future__ import annotations

from typing import Any

import torch

from grace_moe.runtime.model.adapters.adapter import Adapter, PairSums


def _route(block: Any, hidden_TH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids with -1 for identity experts, weights, and the sum of each token's identity weights `[T, 1]`."""
    _, weights, ids = block.router(hidden_TH)
    identity = ids >= block.experts.num_routed_experts
    return ids.masked_fill(identity, -1), weights, (weights * identity).sum(dim=1, keepdim=True)


def _choices(block: Any, hidden_TH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    ids, weights, _ = _route(block, hidden_TH)
    return ids, weights


def _forward(block: Any, hidden: torch.Tensor, sums: PairSums) -> torch.Tensor:
    flat = hidden.reshape(-1, hidden.shape[-1])
    ids, weights, kept = _route(block, flat)
    return (sums(flat, ids, weights) + (flat * kept).to(flat.dtype)).reshape(hidden.shape)


def _compute(block: Any, hidden_PH: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    outputs: torch.Tensor = block.experts(hidden_PH, slots, weights)
    return outputs


LONGCAT_FLASH = Adapter(
    block="LongcatFlashMoE",
    experts=("experts",),
    parameters=("experts.gate_up_proj", "experts.down_proj"),
    num_experts=lambda block: int(block.experts.num_routed_experts),
    choices=_choices,
    forward=_forward,
    compute=_compute,
)
