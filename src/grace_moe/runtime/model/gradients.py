"""What a training step needs beside the backward pass: the experts' gradients summed over replicas, on every replica alike."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from grace_moe.errors import UsageError
from grace_moe.runtime.model.loading import LoadedModel
from grace_moe.runtime.model.placed_experts import placed_experts


def finish_expert_gradients(loaded: LoadedModel) -> None:
    """Call after `backward()`, before the optimiser's step. Collective.

    Each rank's loss is the mean over its own share, and the model's loss the mean over ranks: FSDP takes it so for the
    dense weights, and divides the experts' gradients by the number of ranks. What is left is to sum what the replicas of
    an expert saw. All replicas get the same bytes, so replicas that start equal stay equal.

    Raises:
        UsageError: the model runs Transformers' own expert parallelism, which has no replicas to sum.
    """
    if loaded.session is None:
        raise UsageError("dispatch vanilla: Transformers' own expert parallelism has no replicas; load with flat or hierarchical")
    for experts, route in placed_experts(loaded.model):
        hosts_E = (route.slot_of_DE >= 0).sum(dim=0)
        replicated = (hosts_E > 1).nonzero()[:, 0].tolist()
        row_of = {expert: row for row, expert in enumerate(replicated)}
        here = [(slot, row_of[expert]) for slot, expert in enumerate(route.local_experts) if expert in row_of]
        slots, rows = [slot for slot, _ in here], [row for _, row in here]
        for parameter in experts.parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:  # no token came to this rank
                parameter.grad = torch.zeros_like(parameter)
            gradient = _local(parameter.grad)
            if replicated:
                total = gradient.new_zeros((len(replicated), *gradient.shape[1:]))
                total[rows] = gradient[slots]
                dist.all_reduce(total)
                gradient[slots] = total[rows]


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as a plain tensor: FSDP wraps the experts over a mesh of this rank alone."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
