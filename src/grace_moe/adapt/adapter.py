"""The policy that serves: watch tokens, tell change from noise, decide, and look again as evidence grows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from grace_moe.adapt.account import Account, CostOf
from grace_moe.adapt.decide import Decision, DecisionOptions, decide
from grace_moe.adapt.episodes import BaseAdapter
from grace_moe.adapt.judge import cost_per_token
from grace_moe.adapt.monitor import Monitor
from grace_moe.adapt.options import AdaptOptions
from grace_moe.adapt.request_costs import request_costs
from grace_moe.adapt.review import Review, review
from grace_moe.placement import LayerPlacement, Placement
from grace_moe.planning.grace.options import check_replannable
from grace_moe.trace import RoutingTrace, order_of_requests
from grace_moe.trace.change import Change, change_between


class Adapter(BaseAdapter):
    """Decides by a sample of the tokens that are served.

    Raises:
        UsageError: on construction, if there are more nodes than a search takes.
    """

    monitor: Monitor
    looks_after_change = 8
    growth = 1.5
    tells_between_looks = False  # True followed bursts that were over: OLMoE's `bursts` and `flicker`, seeds 101 and 102

    def __init__(self, serving: Placement, planned_on: RoutingTrace, *, options: AdaptOptions | None = None, seed: int = 0) -> None:
        check_replannable(serving.topology)
        super().__init__(serving, options=options, seed=seed)
        shape = (planned_on.layer_ids, planned_on.num_experts, planned_on.top_k)
        self.monitor = Monitor(*shape, options=self.options.monitor, seed=seed)
        self._before = planned_on
        prices, copies = self.options.decision.prices, int(serving.slots_per_device().sum())
        self._dearest = prices.move if serving.topology.num_nodes > 1 else prices.local_move
        whole_budget = self.options.decision.budget * copies * self._dearest
        self.account = Account(serving, prices, share=self.options.harm, most=whole_budget)

    def _change(self, step: int) -> Change:
        recent = self.monitor.sample(step - self.options.recent_steps)
        return change_between(self._before, recent, seed=self._seed + step)

    def _note_switches(self, step: int) -> None:
        super()._note_switches(step)
        self.account.switch(self.serving, step)

    def _affordable(self, began: int, step: int, target: Placement) -> float:
        for until in (began, step):  # what came before the change costs otherwise
            if until > self.account.settled:
                self.account.settle(until, self.monitor.tokens_per_step, self._cost_of(self.account.settled, until))
        return self.account.may_spend(target) / self._dearest

    def _cost_of(self, since: int, until: int) -> CostOf | None:
        seen = self.monitor.sample(since, until=until)
        if not seen.num_tokens:
            return None
        requests, _ = order_of_requests(seen)
        prices, serving = self.options.decision.prices, self.serving

        def cost_of(index: int, layer: LayerPlacement) -> float:
            ids = seen.topk_ids[:, index].astype(np.int64)
            return float(cost_per_token(request_costs(layer, serving.topology, serving.replica_choice, ids, requests), prices)[0])

        return cost_of

    def _decide(self, first_step: int, options: DecisionOptions, order: Sequence[int]) -> Decision:
        since = self.monitor.sample(first_step, self.serving.model)
        self._before = since
        return decide(self.serving, since, options, order=order)

    def _review(self, former: Placement, since: int, options: DecisionOptions) -> Review | None:
        return review(former, self.serving, self.monitor.sample(since, self.serving.model), options)
