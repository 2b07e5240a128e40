"""What a router's output says of experts that are really asked."""

from __future__ import annotations

import torch


def chosen(topk_ids_TK: torch.Tensor, weights_TK: torch.Tensor, num_experts: int) -> torch.Tensor:
    """`[T, K]` int64 ids, -1 where no expert is asked: an id beyond the experts, or a weight of zero.

    Some routers skip a token's expert that way (ZAYA gives expert 0 with weight 0). A weight that is differentiated is kept: its gradient
    needs the expert's output.
    """
    ids = topk_ids_TK.to(torch.int64)
    none = ids >= num_experts
    if not (torch.is_grad_enabled() and weights_TK.requires_grad):
        none = none | (weights_TK == 0)
    return ids.masked_fill(none, -1)
