"""What a cluster serves, as it goes by, where counters are all there is: the loads of the last steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.errors import MismatchError, UsageError

Loads = npt.NDArray[np.int32]


class LoadMonitor:
    """Keeps each of the last steps by itself: steps are what is independent, as requests are of tokens. Older ones are forgotten."""

    def __init__(self, layer_ids: Sequence[int], num_experts: int, top_k: int, *, steps: int = 128) -> None:
        """`top_k`: experts that a token chooses; tells tokens from pairs. `steps`: that are kept, `layers * experts * 4` bytes each.

        Raises:
            UsageError: one is below 1.
        """
        if top_k < 1 or steps < 1:
            raise UsageError(f"top_k {top_k}, steps {steps}: use 1 or more")
        self._top_k = top_k
        self._loads = np.zeros((steps, len(layer_ids), num_experts), np.int32)
        self._pairs = 0
        self.step = 0
        """Steps observed."""

    @property
    def tokens_per_step(self) -> float:
        """Mean over all steps."""
        return self._pairs / (max(1, self.step) * self._top_k * self._loads.shape[1])

    @property
    def memory_bytes(self) -> int:
        """Of all that is kept; it does not grow."""
        return self._loads.nbytes

    def observe(self, loads: npt.NDArray[np.integer[Any]]) -> None:
        """Take in one step.

        Args:
            loads: `[L, E]` pairs that each expert got in the step, all ranks together.

        Raises:
            MismatchError: other layers or experts than the monitor's.
        """
        if loads.shape != self._loads.shape[1:]:
            layers, experts = self._loads.shape[1:]
            raise MismatchError(f"a step of loads {loads.shape}, but the monitor watches [{layers}, {experts}]")
        self._loads[self.step % len(self._loads)] = loads
        self._pairs += int(loads.sum())
        self.step += 1

    def sample(self, since: int = 0) -> Loads:
        """`[S, L, E]` loads of the kept steps from `since` on, in their order."""
        steps = np.arange(max(since, self.step - len(self._loads), 0), self.step)
        return self._loads[steps % len(self._loads)]
