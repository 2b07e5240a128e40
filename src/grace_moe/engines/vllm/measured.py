"""What was measured in vLLM's window and its policy isn't told: which replica worked (its balancer sums by expert), and, where our router
seam sees them, choices of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from grace_moe.engines.live.replanner import Measured
from grace_moe.engines.vllm.seams import sample_of

Loads = npt.NDArray[np.int64]


_windows: list[Measured] = []
"""Of each model, at the last rearrangement."""


def count_by_slot(eplb_state: Any) -> None:
    """Sum the windows by slot too, and bring samples together, before each rearrangement: in the order in which all ranks go through it."""
    rearrange = eplb_state.EplbState.rearrange

    def counted(self: Any, is_profile: bool = False, rank_mapping: Any = None, use_last_expert_load: bool = False) -> Any:
        """See vLLM's method of this name."""
        _windows.clear()
        if not is_profile and rank_mapping is None and not use_last_expert_load:
            for state in self.model_states.values():
                window = state.expert_load_window.sum(dim=0)
                torch.distributed.all_reduce(window, group=eplb_state.get_ep_group().device_group)
                sample = sample_of(state)
                seen = None if sample is None else sample.gathered(eplb_state.get_ep_group().cpu_group)
                _windows.append(Measured(by_slot=window.cpu().numpy().astype(np.int64), seen=seen))
        return rearrange(self, is_profile, rank_mapping, use_last_expert_load)

    eplb_state.EplbState.rearrange = counted


def measured(loads: Loads, rows: npt.NDArray[np.integer[Any]]) -> Measured | None:
    """The window whose sums by expert `[layers, experts]` these are, under this map `[layers, slots]`; None where there is none."""
    for window in _windows:
        if window.by_slot.shape == rows.shape:
            sums = np.zeros_like(loads)
            np.add.at(sums, (np.arange(len(rows))[:, None], rows), window.by_slot)
            if (sums == loads).all():
                return window
    return None
