"""What the router of one rank chose in a run, to be replayed: a trace of the run's own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from grace_moe.runtime.model.step import Step
from grace_moe.trace import RoutingTrace

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RoutedTokens:
    """The real tokens of one rank, in the order of its passes."""

    topk_ids: Ints
    """`[tokens, layers, k]`, -1 = none."""
    request_ids: Ints
    """`[tokens]`"""
    phase: Ints
    """`[tokens]` 0 prefill, 1 decode."""


@dataclass(kw_only=True)
class RoutingLog:
    """Collects a rank's choices. Only a session that is given one pays for it."""

    steps: list[Step] = field(default_factory=list)
    ids: list[dict[int, torch.Tensor]] = field(default_factory=list)
    """Per pass, the choices `[rows, k]` of each layer."""

    def begin_step(self, step: Step) -> None:
        """A forward pass comes."""
        self.steps.append(step)
        self.ids.append({})

    def seen(self, layer_id: int, topk_ids_TK: torch.Tensor) -> None:
        """One layer's choices in this pass."""
        self.ids[-1][layer_id] = topk_ids_TK.cpu()

    def tokens(self, layer_ids: Sequence[int]) -> RoutedTokens:
        """The rows that are real tokens."""
        chosen: list[Any] = []
        for step, of_layer in zip(self.steps, self.ids, strict=True):
            chosen.append(torch.stack([of_layer[layer_id] for layer_id in layer_ids], dim=1)[step.valid])
        return RoutedTokens(
            topk_ids=torch.cat(chosen).numpy(),
            request_ids=torch.cat([step.request_ids[step.valid] for step in self.steps]).numpy(),
            phase=np.concatenate([np.full(int(step.valid.sum()), step.phase) for step in self.steps]),
        )


def trace_of_run(ranks: Sequence[RoutedTokens], request_ids: Sequence[int], *, num_experts: int, layer_ids: Sequence[int]) -> RoutingTrace:
    """All ranks' tokens, request by request in the order of the job: a replay deals them to the devices as the run did.

    Args:
        request_ids: of the job's requests; the trace numbers them 0, 1, ...
    """
    number = {request_id: index for index, request_id in enumerate(request_ids)}
    of_request = np.array([number[r] for tokens in ranks for r in tokens.request_ids.tolist()], dtype=np.int32)
    order = np.argsort(of_request, kind="stable")
    return RoutingTrace(
        topk_ids=np.concatenate([tokens.topk_ids for tokens in ranks])[order].astype(np.int16),
        num_experts=num_experts,
        layer_ids=tuple(layer_ids),
        request_ids=of_request[order],
        phase=np.concatenate([tokens.phase for tokens in ranks])[order].astype(np.uint8),
        source="the run's own routing",
    )
