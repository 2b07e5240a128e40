"""DBRX: the weights of all experts lie one below the other, `[experts * inner, hidden]`."""

from __future__ import annotations

from typing import Any

import torch

from grace_moe.runtime.model.adapters.adapter import Adapter, PairSums


def _choices(block: Any, hidden_TH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    weights, ids = block.route_tokens_to_experts(block.router(hidden_TH))
    return ids, weights


def _forward(block: Any, hidden: torch.Tensor, sums: PairSums) -> torch.Tensor:
    flat = hidden.reshape(-1, hidden.shape[-1])
    return sums(flat, *_choices(block, flat)).reshape(hidden.shape)


def _compute(block: Any, hidden_PH: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    outputs: torch.Tensor = block.experts(hidden_PH, slots, weights)
    return outputs.reshape(hidden_PH.shape)


DBRX = Adapter(
    block="DbrxFFN",
    experts=("experts",),
    parameters=("experts.mlp.w1", "experts.mlp.v1", "experts.mlp.w2"),
    num_experts=lambda block: int(block.experts.num_experts),
    rows=lambda block: int(block.experts.ffn_hidden_size),
    choices=_choices,
    forward=_forward,
    compute=_compute,
)
