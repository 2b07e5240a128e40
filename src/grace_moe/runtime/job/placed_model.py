"""The front door of Python programs: join torchrun's ranks, and load a model by a placement."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch

from grace_moe.placement import Placement
from grace_moe.runtime.dispatch.rank_groups import make_groups
from grace_moe.runtime.job import TIMEOUT_SECONDS
from grace_moe.runtime.job.ranks import agree, joined
from grace_moe.runtime.model.loading import LoadedModel, load_model


@contextmanager
def placed_model(
    path: str,
    placement: Placement,
    *,
    dispatch: str = "hierarchical",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    timeout_seconds: float = TIMEOUT_SECONDS,
    equal_slots: bool = False,
) -> Iterator[LoadedModel]:
    """Join the other ranks and load this one's part of the model; leave them at the end. Collective.

    Args:
        path: of the model's folder, on this machine.
        dispatch: one of `cost.transport.DISPATCHES`.
        seed: of the replica choice.
        timeout_seconds: how long a rank waits for another.
        equal_slots: give every device as many slots as the fullest, so that experts can move (`adapting`).

    Raises:
        RankError: not started as a rank, a rank never joined, or one was lost inside the block; it is named.
        MismatchError: ranks were given different placements, or the placement is not of this model and these ranks.
        ModelError: as `model.loading.load_model`.
    """
    timeout = timedelta(seconds=timeout_seconds)
    with joined(timeout=timeout) as member:
        agree(member, {"placement": _digest(placement), "dispatch": dispatch, "dtype": str(dtype), "seed": str(seed)})
        groups = make_groups(placement.topology, timeout)
        yield load_model(path, placement, groups, dispatch=dispatch, dtype=dtype, seed=seed, equal_slots=equal_slots)


def _digest(placement: Placement) -> str:
    """Of what decides where experts are."""
    told = repr((placement.topology.shape, placement.num_experts, placement.layers))
    return f"SHA-256 {hashlib.sha256(told.encode()).hexdigest()[:12]}"
