"""Llama 4: its experts compute every token, scaled by a score that is zero but for the chosen. Here only the chosen pairs are computed.

The score scales what goes into an expert, not what comes out.
"""

from __future__ import annotations

from typing import Any

import torch

from grace_moe.runtime.model.adapters.adapter import Adapter, PairSums


def _route(block: Any, hidden_TH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    scores_TE, logits_TE = block.router(hidden_TH)
    ids = torch.topk(logits_TE, block.top_k, dim=1).indices
    return ids, scores_TE.gather(1, ids), logits_TE


def _choices(block: Any, hidden_TH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    ids, weights, _ = _route(block, hidden_TH)
    return ids, weights


def _forward(block: Any, hidden: torch.Tensor, sums: PairSums) -> tuple[torch.Tensor, torch.Tensor]:
    flat = hidden.reshape(-1, block.hidden_dim)
    ids, weights, logits = _route(block, flat)
    return block.shared_expert(flat) + sums(flat, ids, weights), logits


def _experts_forward(experts: Any, hidden_PH: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    outputs = torch.zeros_like(hidden_PH)
    scaled = hidden_PH * weights
    for slot in slots.unique().tolist():
        rows = (slots[:, 0] == slot).nonzero()[:, 0]
        gate, up = (scaled[rows] @ experts.gate_up_proj[slot]).chunk(2, dim=-1)
        outputs = outputs.index_add(0, rows, (up * experts.act_fn(gate)) @ experts.down_proj[slot])
    return outputs


def _compute(block: Any, hidden_PH: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    outputs: torch.Tensor = block.experts(hidden_PH, slots, weights)
    return outputs


LLAMA4 = Adapter(
    block="Llama4TextMoe",
    experts=("experts",),
    parameters=("experts.gate_up_proj", "experts.down_proj"),
    num_experts=lambda block: int(block.num_experts),
    choices=_choices,
    forward=_forward,
    compute=_compute,
    experts_forward=_experts_forward,
)
