"""The policy that serves: watch tokens, tell change from noise, decide, and look again as evidence grows."""

from __future__ import annotations

from collections.abc import Sequence

from grace_moe.adapt.decide import Decision, DecisionOptions, decide
from grace_moe.adapt.episodes import AdaptOptions, BaseAdapter
from grace_moe.adapt.monitor import Monitor
from grace_moe.adapt.review import Review, review
from grace_moe.placement import Placement
from grace_moe.planning.grace.options import check_replannable
from grace_moe.trace import RoutingTrace
from grace_moe.trace.change import Change, change_between


class Adapter(BaseAdapter):
    """Decides by a sample of the tokens that are served.

    Raises:
        UsageError: on construction, if there are more nodes than a search takes.
    """

    monitor: Monitor

    def __init__(self, serving: Placement, planned_on: RoutingTrace, *, options: AdaptOptions | None = None, seed: int = 0) -> None:
        check_replannable(serving.topology)
        super().__init__(serving, options=options, seed=seed)
        shape = (planned_on.layer_ids, planned_on.num_experts, planned_on.top_k)
        self.monitor = Monitor(*shape, options=self.options.monitor, seed=seed)
        self._before = planned_on

    def _change(self, step: int) -> Change:
        recent = self.monitor.sample(step - self.options.recent_steps)
        return change_between(self._before, recent, seed=self._seed + step)

    def _decide(self, first_step: int, options: DecisionOptions, order: Sequence[int]) -> Decision:
        since = self.monitor.sample(first_step, self.serving.model)
        self._before = since
        return decide(self.serving, since, options, order=order)

    def _review(self, former: Placement, since: int, options: DecisionOptions) -> Review | None:
        return review(former, self.serving, self.monitor.sample(since, self.serving.model), options)
