"""The policy that serves where an engine counts what its experts got and shows no tokens: the same looks, by loads alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.adapt.by_counts.decide import check_shared_by_weight, decide_by_counts
from grace_moe.adapt.by_counts.detect import change_of_loads, noise_of
from grace_moe.adapt.by_counts.monitor import LoadMonitor
from grace_moe.adapt.decide import Decision, DecisionOptions
from grace_moe.adapt.episodes import BaseAdapter
from grace_moe.adapt.monitor import MonitorOptions
from grace_moe.adapt.options import AdaptOptions
from grace_moe.adapt.review import Review
from grace_moe.errors import UsageError
from grace_moe.placement import Placement
from grace_moe.trace import LoadProfile
from grace_moe.trace.change import Change

STEPS_PER_LOAD = 2
"""Steps in which a device loads an expert, on the average: one that sends several makes others wait. Chosen on loads of GLM-5.2, web to
mathematics, 2x8."""


class LoadAdapter(BaseAdapter):
    """Decides by the loads of the last steps. Copies between nodes are unknown to it: it evens out devices, and spares bytes of moves.

    Raises:
        UsageError: on construction, if replicas are not chosen by weight, or options are given that only tokens have a use for.
    """

    monitor: LoadMonitor
    looks_after_change = 5
    growth = 2.0
    tells_between_looks = True

    def __init__(
        self, serving: Placement, planned_on: LoadProfile, *, top_k: int, options: AdaptOptions | None = None, seed: int = 0
    ) -> None:
        """`top_k`: experts that a token chooses."""
        super().__init__(serving, options=options, seed=seed)
        check_shared_by_weight(serving)
        unused, decision = DecisionOptions(), self.options.decision
        if (decision.work, decision.effort) != (unused.work, unused.effort) or self.options.monitor != MonitorOptions():
            raise UsageError("work, effort and the monitor's options are of a sample of tokens; leave them out where loads alone are known")
        if self.options.harm != AdaptOptions().harm:
            raise UsageError("harm is a share of what traffic costs, which loads alone don't tell; leave it out")
        self.monitor = LoadMonitor(planned_on.layer_ids, planned_on.num_experts, top_k)
        self._before: npt.NDArray[np.integer[Any]] = planned_on.loads[None]
        self._noise: npt.NDArray[np.float64] | None = None

    def _change(self, step: int) -> Change:
        """How far steps differ is told by those since the last change; by those before it, as long as they are too few."""
        recent = self.options.recent_steps
        since = self._told_at + recent if self._told_at else 0  # requests of the traffic before it have ended
        noise = noise_of(self.monitor.sample(since), recent)
        self._noise = self._noise if noise is None else noise
        return change_of_loads(self._before, self.monitor.sample(), recent, self._noise)

    def _decide(self, first_step: int, options: DecisionOptions, order: Sequence[int]) -> Decision:
        """By the later half of the steps, as requests of before end in the others; of all layers, whatever their order.

        The next look, after as many steps again, plans anew what has not moved by then: what cannot move until then is left to it, so that
        what is worth most goes first.
        """
        steps = self.monitor.step - first_step
        since = self.monitor.sample(self.monitor.step - max(self.options.recent_steps, steps // 2))
        self._before = since
        loads = self.serving.topology.num_devices * steps / STEPS_PER_LOAD
        budget = min(options.budget, loads / int(self.serving.slots_per_device().sum()))
        return decide_by_counts(self.serving, since, replace(options, budget=budget))

    def _affordable(self, began: int, step: int, target: Placement) -> float:
        """Any number: what traffic costs is unknown where copies are."""
        return math.inf

    def _review(self, former: Placement, since: int, options: DecisionOptions) -> Review | None:
        """None: each later look levels anew from what serves, on later steps."""
        return None
