"""What a dispatcher takes and gives.

A dispatcher brings each token's hidden state to the devices of its experts, once a device, and sums the weighted
outputs back at its source. Experts know nothing of communication: they see rows, local slots and weights.

Shape letters: T tokens of this rank, K top-k, H hidden size, R rows received.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """The tokens of this rank in one layer, and where each of their experts is reached (made by `LayerRoute.outgoing`)."""

    hidden_TH: torch.Tensor
    devices_TK: torch.Tensor
    """int64 device that computes each pair, -1 = no expert chosen."""
    slots_TK: torch.Tensor
    """int64 slot on that device, -1 = no expert chosen."""
    weights_TK: torch.Tensor
    """Routing weights."""
    slots_width: int
    """More than the largest slot number on any device; alike on all ranks."""

    @property
    def top_k(self) -> int:
        return self.devices_TK.shape[1]


@dataclass(frozen=True, kw_only=True)
class Received:
    """The rows that this rank's experts compute."""

    hidden_RH: torch.Tensor
    slots_RK: torch.Tensor
    """int64 local slots, -1 = not here."""
    weights_RK: torch.Tensor
    """float32 routing weights."""

    def rows(self, which: slice) -> Received:
        """Some of the rows."""
        return Received(hidden_RH=self.hidden_RH[which], slots_RK=self.slots_RK[which], weights_RK=self.weights_RK[which])


Compute: TypeAlias = Callable[[Received], torch.Tensor]
"""This rank's experts: `[R, H]` weighted sums over the slots that each row names."""
PhaseTimer: TypeAlias = Callable[[str], AbstractContextManager[Any]]
"""Times a phase by name, or does nothing."""


class Dispatcher(Protocol):
    """`combine` is the inverse of `dispatch`: it takes the state that `dispatch` made."""

    def dispatch(self, outgoing: Outgoing) -> tuple[Received, Any]:
        """Send the tokens out. Collective: every rank calls it, also with T = 0."""
        ...

    def combine(self, partial_RH: torch.Tensor, state: Any) -> torch.Tensor:
        """Bring the weighted sums back: `[T, H]`. Collective."""
        ...

    def run(self, outgoing: Outgoing, compute: Compute, timer: PhaseTimer) -> torch.Tensor:
        """`combine(compute(dispatch(...)))`, in whatever order hides most; `compute` may be called several times, on some rows each, and
        times itself. Collective; without gradients."""
        ...

    def spread(self, rows_TW: torch.Tensor, state: Any) -> torch.Tensor:
        """`[R, W]` any rows of the tokens, sent the ways that `dispatch` took: the adjoint of `combine`. Collective."""
        ...
