"""What the layers of one loaded model share on a rank: the dispatcher, the routes, and which tokens are real."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch

from grace_moe.runtime.dispatch import Dispatcher
from grace_moe.runtime.dispatch.collectives import TrafficMeter
from grace_moe.runtime.dispatch.route import LayerRoute
from grace_moe.runtime.model.choice_sampler import ChoiceSampler
from grace_moe.runtime.model.routing_log import RoutingLog
from grace_moe.runtime.model.step import Step
from grace_moe.runtime.profiling import Profiler
from grace_moe.trace import PREFILL


@dataclass(kw_only=True)
class ExpertParallelSession:
    """Mutable on purpose: `begin_step` is called before every forward pass."""

    routes: dict[int, LayerRoute]
    dispatcher: Dispatcher
    meter: TrafficMeter
    first_token: int = 0
    """Tokens that this rank has routed in earlier steps; numbers the draws."""
    phase: int = PREFILL
    """Of the coming pass: PREFILL or DECODE, alike on all ranks; training is prefill."""
    valid_T: torch.Tensor | None = None
    """bool: rows of the coming pass that are real tokens, on the layers' device; None = all."""
    profiler: Profiler | None = None
    """Times the phases of every layer, where given."""
    log: RoutingLog | None = None
    """Keeps what the router chose, where given."""
    sampler: ChoiceSampler | None = None
    """Takes in some of what the router chose, where experts may move."""
    experts_of_text: dict[int, int] = field(default_factory=dict)
    """Per layer, the `id` of its first module of experts: an image's tokens may have experts of their own, which text never reaches."""
    _rows_of_step: int = 0

    def restart(self) -> None:
        """Number tokens from 0 again."""
        self.phase = PREFILL
        self.first_token = self._rows_of_step = 0

    def begin_step(self, step: Step) -> None:
        """Note the phase, and which rows are real; padding and idle rows are not dispatched."""
        self.first_token += self._rows_of_step
        self._rows_of_step = len(step.valid)
        self.phase = step.phase
        self.valid_T = step.valid.to(self._device, non_blocking=True)
        if self.profiler is not None:
            self.profiler.step += 1
        if self.log is not None:
            self.log.begin_step(step)
        if self.sampler is not None:
            self.sampler.begin_step(step)

    @property
    def _device(self) -> torch.device:
        """Of the layers."""
        return next(iter(self.routes.values())).slot_of_DE.device

    def timed(self, phase: str, layer_id: int) -> AbstractContextManager[dict[str, int]]:
        """Time a phase of a layer, where there is a profiler."""
        return self.profiler.timed(phase, layer_id) if self.profiler is not None else nullcontext({})
