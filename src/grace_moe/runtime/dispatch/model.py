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

from grace_moe.runtime.dispatch.route import LayerRoute


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
Span: TypeAlias = Callable[[str], AbstractContextManager[Any]]
"""Times a phase by name, or does nothing."""


class Dispatcher(Protocol):
    """`combine` is the inverse of `dispatch`: it takes the state that `dispatch` made."""

    def dispatch(
        self, route: LayerRoute, hidden_TH: torch.Tensor, devices_TK: torch.Tensor, slots_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> tuple[Received, Any]:
        """Send the tokens out. Collective: every rank calls it, also with T = 0."""
        ...

    def combine(self, partial_RH: torch.Tensor, state: Any) -> torch.Tensor:
        """Bring the weighted sums back: `[T, H]`. Collective."""
        ...

    def run(
        self,
        route: LayerRoute,
        hidden_TH: torch.Tensor,
        devices_TK: torch.Tensor,
        slots_TK: torch.Tensor,
        weights_TK: torch.Tensor,
        compute: Compute,
        span: Span,
    ) -> torch.Tensor:
        """`combine(compute(dispatch(...)))`, in whatever order hides most; `compute` may be called several times, on some rows each, and
        times itself. Collective; without gradients."""
        ...

    def spread(self, rows_TW: torch.Tensor, state: Any) -> torch.Tensor:
        """`[R, W]` any rows of the tokens, sent the ways that `dispatch` took: the adjoint of `combine`. Collective."""
        ...


def visits(devices_TK: torch.Tensor, num_devices: int) -> torch.Tensor:
    """`[num_devices, T]` whether a token must reach a device (or node); -1 reaches none."""
    reached = torch.zeros((devices_TK.shape[0], num_devices + 1), dtype=torch.bool, device=devices_TK.device)
    reached.scatter_(1, torch.where(devices_TK >= 0, devices_TK, num_devices), True)
    return reached[:, :num_devices].T


def positions(reached: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column, row-major, of each true entry of a matrix known to have `size` of them: the host need not wait to learn it."""
    found = reached.nonzero_static(size=size)
    return found[:, 0], found[:, 1]


def add_rows(rows_RH: torch.Tensor, index_R: torch.Tensor, size: int, *more: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """`[size, H]` sums of rows by index, accumulated in float32 at least, in ascending row order; then of `more` rows by their index."""
    wide = torch.promote_types(rows_RH.dtype, torch.float32)
    total = torch.zeros((size, rows_RH.shape[1]), dtype=wide, device=rows_RH.device)
    for rows, index in ((rows_RH, index_R), *more):
        total = total.index_add_(0, index, rows.to(wide))
    return total.to(rows_RH.dtype)
