"""What is asked of a family that has no expert-parallel plan in Transformers.

T tokens, H hidden size, K top-k, P pairs of a token and an expert.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

PairSums: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Hidden states `[T, H]`, chosen experts `[T, K]` (-1 = none) and weights `[T, K]` -> weighted sums `[T, H]`, wherever the experts are."""


def _one_row(block: Any) -> int:
    del block
    return 1


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One family's MoE block. Functions take the block first."""

    block: str
    """Its class in Transformers."""
    experts: tuple[str, ...]
    """Modules of the block whose parameters are all experts', by their names in it."""
    parameters: tuple[str, ...]
    """The experts' parameters, by their names in the block."""
    num_experts: Callable[[Any], int]
    choices: Callable[[Any, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    """Hidden states `[T, H]` -> the router's ids `[T, K]` int64 (-1 = no expert that has weights) and weights `[T, K]`."""
    forward: Callable[[Any, torch.Tensor, PairSums], Any]
    """The block's forward pass, with its experts reached by the `PairSums`."""
    compute: Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    """Hidden states `[P, H]`, slots `[P, 1]` of this rank, weights `[P, 1]` -> weighted outputs `[P, H]`."""
    experts_forward: Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    """What `compute` calls of the experts' module, where its own forward takes no slots."""
    rows: Callable[[Any], int] = _one_row
    """Rows of a parameter that belong to one expert."""
