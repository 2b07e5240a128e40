"""Rows on the wire: a hidden state, its slots on the receiver and their routing weights, in one uint8 row.

    byte  0 ............ H*itemsize | ............ K*2 | ............ K*4
          hidden state              | slots (int16)    | weights (float32)

R rows, H hidden size, K top-k.
"""

from __future__ import annotations

import torch

from grace_moe.wire import SLOT_BYTES, WEIGHT_BYTES


def pack(hidden_RH: torch.Tensor, slots_RK: torch.Tensor, weights_RK: torch.Tensor) -> torch.Tensor:
    """`[R, bytes]` uint8 of equally many hidden states, slots (any integer below 32768, -1 = none) and weights."""
    parts = (hidden_RH, slots_RK.to(torch.int16), weights_RK.to(torch.float32))
    return torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=1)


def unpack(rows: torch.Tensor, dtype: torch.dtype, top_k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The inverse of `pack`: hidden states of `dtype`, int64 slots, float32 weights."""
    hidden_bytes = rows.shape[1] - top_k * (SLOT_BYTES + WEIGHT_BYTES)
    hidden, slots, weights = torch.split(rows, [hidden_bytes, top_k * SLOT_BYTES, top_k * WEIGHT_BYTES], dim=1)
    return _aligned(hidden).view(dtype), _aligned(slots).view(torch.int16).to(torch.int64), _aligned(weights).view(torch.float32)


def _aligned(part: torch.Tensor) -> torch.Tensor:
    """A copy of its own: a slice of one row, or of none, is "contiguous" at any offset, and can't be viewed as a wider type."""
    return part.clone(memory_format=torch.contiguous_format)
