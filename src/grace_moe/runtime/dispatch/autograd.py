"""Gradients through dispatch and combine: copying rows out and summing rows back are each other's adjoint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from grace_moe.runtime.dispatch.dispatcher import Dispatcher, Outgoing, Received


def dispatch_with_gradients(dispatcher: Dispatcher, outgoing: Outgoing) -> tuple[Received, Any]:
    """`dispatcher.dispatch`, differentiable in hidden states and weights. Its backward pass is collective too."""
    hidden, weights, slots, state = _Dispatch.apply(  # type: ignore[no-untyped-call]
        dispatcher, outgoing, outgoing.hidden_TH, outgoing.weights_TK
    )
    return Received(hidden_RH=hidden, slots_RK=slots, weights_RK=weights), state


def combine_with_gradients(dispatcher: Dispatcher, partial_RH: torch.Tensor, state: Any) -> torch.Tensor:
    """`dispatcher.combine`, differentiable. Its backward pass is collective too."""
    combined: torch.Tensor = _Combine.apply(dispatcher, partial_RH, state)  # type: ignore[no-untyped-call]
    return combined


class _Dispatch(torch.autograd.Function):
    """What is differentiated must be an argument of its own: torch does not look for tensors inside `outgoing`."""

    @staticmethod
    def forward(
        ctx: Any, dispatcher: Dispatcher, outgoing: Outgoing, hidden_TH: torch.Tensor, weights_TK: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Any]:
        received, state = dispatcher.dispatch(replace(outgoing, hidden_TH=hidden_TH, weights_TK=weights_TK))
        ctx.dispatcher, ctx.state, ctx.dtypes = dispatcher, state, (hidden_TH.dtype, weights_TK.dtype)
        ctx.mark_non_differentiable(received.slots_RK)
        return received.hidden_RH, received.weights_RK, received.slots_RK, state

    @staticmethod
    def backward(ctx: Any, grad_hidden_RH: torch.Tensor, grad_weights_RK: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        # One way back for both, in float32: a row carries all K weights, those of other devices with a gradient of zero.
        rows = torch.cat([grad_hidden_RH.to(torch.float32), grad_weights_RK], dim=1)
        grads = ctx.dispatcher.combine(rows, ctx.state)
        hidden, weights = torch.split(grads, [grad_hidden_RH.shape[1], grad_weights_RK.shape[1]], dim=1)
        return None, None, hidden.to(ctx.dtypes[0]), weights.to(ctx.dtypes[1])


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dispatcher: Dispatcher, partial_RH: torch.Tensor, state: Any) -> torch.Tensor:
        ctx.dispatcher, ctx.state = dispatcher, state
        return dispatcher.combine(partial_RH, state)

    @staticmethod
    def backward(ctx: Any, grad_TH: torch.Tensor) -> tuple[None, torch.Tensor, None]:
        return None, ctx.dispatcher.spread(grad_TH, ctx.state), None
