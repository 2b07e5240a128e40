"""What each slot computed in vLLM's window: its balancer sums the window over ranks by expert, and so forgets which replica worked."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Loads = npt.NDArray[np.int64]

_windows: list[Loads] = []
"""`[layers, slots]` pairs over all ranks, of each model of the last rearrangement."""


def count_by_slot(eplb_state: Any) -> None:
    """Sum the windows by slot too, before each rearrangement: one more reduction in the order in which all ranks go through it."""
    rearrange = eplb_state.EplbState.rearrange

    def counted(self: Any, is_profile: bool = False, rank_mapping: Any = None, use_last_expert_load: bool = False) -> Any:
        """See vLLM's method of this name."""
        _windows.clear()
        if not is_profile and rank_mapping is None and not use_last_expert_load:
            for state in self.model_states.values():
                window = state.expert_load_window.sum(dim=0)
                torch.distributed.all_reduce(window, group=eplb_state.get_ep_group().device_group)
                _windows.append(window.cpu().numpy().astype(np.int64))
        return rearrange(self, is_profile, rank_mapping, use_last_expert_load)

    eplb_state.EplbState.rearrange = counted


def measured(loads: Loads, rows: npt.NDArray[np.integer[Any]]) -> Loads | None:
    """The window by slot whose sums by expert `[layers, experts]` these are, under this map `[layers, slots]`; None where there is none."""
    for window in _windows:
        if window.shape == rows.shape:
            sums = np.zeros_like(loads)
            np.add.at(sums, (np.arange(len(rows))[:, None], rows), window)
            if (sums == loads).all():
                return window
    return None
