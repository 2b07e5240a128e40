"""What a training step needs beside the backward pass: gradients summed over replicas, and cut to a norm, on every rank alike."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from grace_moe.errors import UsageError
from grace_moe.runtime.dispatch.rank_groups import rank_device
from grace_moe.runtime.model.loading import LoadedModel
from grace_moe.runtime.model.placed_experts import by_slot, placed_experts

_TINY = 1e-6
"""As in torch's `clip_grad_norm_`: no division by zero."""


def finish_expert_gradients(loaded: LoadedModel) -> None:
    """Call after `backward()`, before the optimiser's step. Collective.

    Each rank's loss is the mean over its own share, and the model's loss the mean over ranks: FSDP takes it so for the
    dense weights, and divides the experts' gradients by the number of ranks. What is left is to sum what the replicas of
    an expert saw. All replicas get the same bytes, so replicas that start equal stay equal.

    Raises:
        UsageError: the model runs Transformers' own expert parallelism, which has no replicas to sum.
    """
    _refuse_vanilla(loaded)
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
            gradient = by_slot(_local(parameter.grad), route)
            if replicated:
                total = gradient.new_zeros((len(replicated), *gradient.shape[1:]))
                total[rows] = gradient[slots]
                dist.all_reduce(total)
                gradient[slots] = total[rows]


def clip_gradients(loaded: LoadedModel, max_norm: float) -> float:
    """Scale all gradients so that their norm is at most `max_norm`; call after `finish_expert_gradients`. Collective.

    The norm is that of one process with the whole batch: each part of a dense weight and each expert counts once, however many replicas
    the expert has. `torch.nn.utils.clip_grad_norm_` can't be used: it takes every parameter for one of the same mesh.

    Returns:
        The norm before scaling, the same number on all ranks.

    Raises:
        UsageError: as `finish_expert_gradients`.
    """
    _refuse_vanilla(loaded)
    experts: set[torch.nn.Parameter] = set()
    squares = torch.zeros((), dtype=torch.float64)
    for module, route in placed_experts(loaded.model):
        first_host_E = (route.slot_of_DE >= 0).to(torch.int8).argmax(dim=0)
        counted = [slot for slot, expert in enumerate(route.local_experts) if expert >= 0 and first_host_E[expert] == dist.get_rank()]
        for parameter in module.parameters(recurse=False):
            experts.add(parameter)
            if parameter.grad is not None:
                squares += _square(by_slot(_local(parameter.grad), route)[counted])
    for parameter in loaded.model.parameters():
        gradient = parameter.grad
        if gradient is not None and parameter not in experts and (isinstance(gradient, DTensor) or dist.get_rank() == 0):
            squares += _square(_local(gradient))  # a part of a sharded weight; of one that all ranks have whole, rank 0 counts
    mine = squares.to(rank_device())
    parts = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    norm = float(torch.stack(parts).sum().sqrt())  # summed in the order of ranks: to the last bit the same everywhere
    scale = min(1.0, max_norm / (norm + _TINY))
    for parameter in loaded.model.parameters():
        if parameter.grad is not None:
            _local(parameter.grad).mul_(scale)
    return norm


def _square(gradient: torch.Tensor) -> torch.Tensor:
    """The sum of squares, as float64 on the CPU."""
    return gradient.double().square().sum().cpu()


def _refuse_vanilla(loaded: LoadedModel) -> None:
    if loaded.session is None:
        raise UsageError("dispatch vanilla: Transformers' own expert parallelism has no replicas; load with flat or hierarchical")


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as a plain tensor: FSDP wraps the experts over a mesh of this rank alone."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
