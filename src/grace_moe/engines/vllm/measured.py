"""What was measured in vLLM's window and its policy isn't told: which replica worked (its balancer sums by expert), and, where our router
seam sees them, choices of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from grace_moe.engines.live.replanner import Measured
from grace_moe.engines.vllm.sampled import RankSample
from grace_moe.engines.vllm.seams import sample_of

Loads = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class _Window:
    """Of this rank, and one model."""

    by_slot: torch.Tensor
    """int64 `[layers, slots]` pairs, on the CPU."""
    sample: RankSample | None


_windows: list[_Window] = []
"""Of each model, at the last rearrangement."""


def count_by_slot(eplb_state: Any) -> None:
    """Sum this rank's windows by slot too, and take its samples, before each rearrangement. What all ranks measured is brought together
    where it is asked for (`measured`): vLLM asks its policy in a thread beside the passes, where its rearrangements are asynchronous."""
    rearrange = eplb_state.EplbState.rearrange

    def counted(self: Any, is_profile: bool = False, rank_mapping: Any = None, use_last_expert_load: bool = False) -> Any:
        """See vLLM's method of this name."""
        _windows.clear()
        if not is_profile and rank_mapping is None and not use_last_expert_load:
            for state in self.model_states.values():
                sample = sample_of(state)
                by_slot = state.expert_load_window.sum(dim=0, dtype=torch.int64).cpu()
                _windows.append(_Window(by_slot=by_slot, sample=None if sample is None else sample.take()))
        return rearrange(self, is_profile, rank_mapping, use_last_expert_load)

    eplb_state.EplbState.rearrange = counted


def measured(loads: Loads, rows: npt.NDArray[np.integer[Any]]) -> Measured | None:
    """The window of all ranks whose sums by expert `[layers, experts]` these are, under this map `[layers, slots]`; None where there is
    none. Collective over the balancer's group, as vLLM's policy is asked on all ranks for one model after the other."""
    for window in _windows:
        if window.by_slot.shape == rows.shape:
            from vllm.distributed.parallel_state import get_eplb_group

            group = get_eplb_group().cpu_group
            total = window.by_slot.clone()
            torch.distributed.all_reduce(total, group=group)
            sums, by_slot = np.zeros_like(loads), total.numpy()
            np.add.at(sums, (np.arange(len(rows))[:, None], rows), by_slot)
            if (sums == loads).all():
                return Measured(by_slot=by_slot, seen=None if window.sample is None else window.sample.gathered(group))
    return None
