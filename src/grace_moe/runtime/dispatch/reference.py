"""The executable specification: one device, no communication, obvious loops.

Summation order: for each token, k ascending, accumulated in float32 at least.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

ExpertsFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(hidden [P, H], ids [P, 1], weights [P, 1]) -> weighted outputs [P, H]."""


def reference_moe(experts: ExpertsFunction, hidden_TH: torch.Tensor, topk_ids_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
    """`[T, H]` weighted sum of each token's experts, token by token."""
    output = torch.zeros_like(hidden_TH, dtype=torch.promote_types(hidden_TH.dtype, torch.float32))
    for t in range(len(hidden_TH)):
        for k in range(topk_ids_TK.shape[1]):
            if topk_ids_TK[t, k] >= 0:
                one = experts(hidden_TH[t : t + 1], topk_ids_TK[t : t + 1, k : k + 1], weights_TK[t : t + 1, k : k + 1])
                output[t] += one[0]
    return output.to(hidden_TH.dtype)
