"""Rows on the wire: a hidden state, its slots on the receiver and their routing weights, in one uint8 row.

    byte  0 ............ H*itemsize | ............ K*2 | ............ K*4
          hidden state              | slots (int16)    | weights (float32)

R rows, H hidden size, K top-k.
"""

from __future__ import annotations

import torch

from grace_moe.cost.wire import SLOT_BYTES, WEIGHT_BYTES


def to_wire(hidden_TH: torch.Tensor, slots_RK: torch.Tensor, weights_TK: torch.Tensor, token_R: torch.Tensor | None = None) -> torch.Tensor:
    """`[R, bytes]` uint8 rows: hidden states, slots (any integer below 32768, -1 = none) and weights.

    Args:
        token_R: int64: which hidden state and weights each row carries; None: row r those of r. They are copied once, to their place.
    """
    hidden, slots, weights = (_bytes(part) for part in (hidden_TH, slots_RK.to(torch.int16), weights_TK.to(torch.float32)))
    first, second = hidden.shape[1], hidden.shape[1] + slots.shape[1]
    rows = hidden.new_empty((len(slots), second + weights.shape[1]))
    rows[:, first:second] = slots
    if token_R is None:
        rows[:, :first], rows[:, second:] = hidden, weights
    else:
        torch.index_select(hidden, 0, token_R, out=rows[:, :first])
        rows[:, second:] = weights[token_R]
    return rows


def from_wire(rows: torch.Tensor, dtype: torch.dtype, top_k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The inverse of `to_wire`: hidden states of `dtype` (where rows they stand in, if those are aligned), int64 slots, float32 weights."""
    hidden_bytes = rows.shape[1] - top_k * (SLOT_BYTES + WEIGHT_BYTES)
    hidden, slots, weights = torch.split(rows, [hidden_bytes, top_k * SLOT_BYTES, top_k * WEIGHT_BYTES], dim=1)
    in_place = rows.shape[1] % dtype.itemsize == 0 and rows.is_contiguous()
    hidden = hidden if in_place else _aligned(hidden)
    return hidden.view(dtype), _aligned(slots).view(torch.int16).to(torch.int64), _aligned(weights).view(torch.float32)


def _bytes(part: torch.Tensor) -> torch.Tensor:
    """The same rows as uint8; rows may lie apart."""
    return (part if part.stride(-1) == 1 else _aligned(part)).view(torch.uint8)


def _aligned(part: torch.Tensor) -> torch.Tensor:
    """A copy of its own. What is "contiguous" may still not be viewed as another type: a slice of one row, or of none, at any offset; a
    single column, of any stride."""
    return part.clone(memory_format=torch.contiguous_format)
