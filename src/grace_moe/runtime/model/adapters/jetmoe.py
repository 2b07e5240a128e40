"""JetMoE: two modules of linear layers, which take the rows of each expert one after the other. Its attention experts are not placed."""

from __future__ import annotations

from typing import Any

import torch

from grace_moe.runtime.model.adapters.adapter import Adapter, PairSums


def _choices(block: Any, hidden_TH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = block.router.layer(hidden_TH).float()
    chosen, ids = logits.topk(block.router.top_k, dim=1)
    return ids, torch.softmax(chosen, dim=1).type_as(hidden_TH)


def _forward(block: Any, hidden: torch.Tensor, sums: PairSums) -> Any:
    flat = hidden.reshape(-1, hidden.shape[-1])
    return sums(flat, *_choices(block, flat)).reshape(hidden.shape) + block.bias


def _compute(block: Any, hidden_PH: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    order = torch.argsort(slots[:, 0], stable=True)
    sizes = torch.bincount(slots[:, 0], minlength=block.input_linear.num_experts).tolist()
    gate, up = block.input_linear(hidden_PH[order], sizes, None).chunk(2, dim=-1)
    outputs = block.output_linear(block.activation(gate) * up, sizes, None)
    return torch.zeros_like(hidden_PH).index_add(0, order, outputs) * weights


JETMOE = Adapter(
    block="JetMoeMoE",
    experts=("input_linear", "output_linear"),
    parameters=("input_linear.weight", "output_linear.weight"),
    num_experts=lambda block: int(block.input_linear.num_experts),
    choices=_choices,
    forward=_forward,
    compute=_compute,
)
