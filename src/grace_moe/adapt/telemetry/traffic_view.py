"""What recent traffic costs under the placement that serves: a replay of the monitor's sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from grace_moe.adapt.adapter import Adapter
from grace_moe.adapt.request_costs import routed
from grace_moe.evaluation import evaluate
from grace_moe.evaluation.batches import active_experts
from grace_moe.placement import Placement
from grace_moe.trace import RoutingTrace, order_of_requests


@dataclass(frozen=True, kw_only=True)
class TrafficView:
    """Of the recent steps; means over layers."""

    device_load: tuple[float, ...]
    """`[devices]` load over the mean device's."""
    active_experts: float
    """Most distinct experts that a device computed for the sampled tokens of a step."""
    copies_between_nodes: float
    """Per token and layer."""
    copies_inside_nodes: float
    balance: float
    """Load of the busiest device over the mean."""
    predicted_balance: float | None
    """What the last decision to move expected of it; None before the first."""
    gain_left: float
    """Copies per token and layer that the last decision saw and left, for they would not surely pay or were over the budget."""
    saved_share: float
    """Since the start, of what traffic would have cost under the first plan, moves taken off: as of the last look (`account.Account`)."""


def traffic_view(adapter: Adapter) -> TrafficView | None:
    """Of what serves now; None before the first step."""
    monitor, placement = adapter.monitor, adapter.serving
    recent = monitor.sample(monitor.step - adapter.options.recent_steps, placement.model)
    if not recent.num_tokens:
        return None
    found = evaluate(placement, recent)
    decided = [look.decision for look in adapter.looks if look.decision.placement is not None]
    load = found.device_load / np.maximum(found.device_load.mean(axis=1, keepdims=True), 1e-12)
    return TrafficView(
        device_load=tuple(load.mean(axis=0).tolist()),
        active_experts=_active_experts(placement, monitor.sample(monitor.step - 1)),
        copies_between_nodes=found.cross_node_copies,
        copies_inside_nodes=found.intra_node_copies,
        balance=found.load_max_over_mean,
        predicted_balance=decided[-1].balance if decided else None,
        gain_left=adapter.looks[-1].decision.gain_left if adapter.looks else 0.0,
        saved_share=adapter.account.saved_share,
    )


def _active_experts(placement: Placement, step: RoutingTrace) -> float:
    """Most distinct experts that a device computes for the tokens of one step, mean over layers."""
    topology, numbers = placement.topology, np.arange(step.num_tokens)
    source = order_of_requests(step)[0] % topology.num_devices
    found = []
    for index, layer in enumerate(placement.layers):
        ids = step.topk_ids[:, index].astype(np.int64)
        devices, _ = routed(layer, topology, placement.replica_choice, ids, source, numbers)
        found.append(active_experts(ids, devices, np.zeros_like(numbers), topology.num_devices))
    return float(np.mean(found))
