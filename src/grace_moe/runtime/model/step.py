"""One forward pass, as the layers see it: whoever generates or trains announces it, sessions and recorders read it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Step:
    """Rows are tokens in batch-major order."""

    phase: int
    """PREFILL or DECODE."""
    valid: torch.Tensor
    """`[rows]` bool: real tokens, not padding."""
    request_ids: torch.Tensor
    """`[rows]` int64."""
    token_ids: torch.Tensor
    """`[rows]` int64, in the model's vocabulary."""
