"""What a placement sends and computes on a trace, by device and tier: a replay for `cost`, in parts that can be weighed."""

from __future__ import annotations

import numpy as np

from grace_moe.cost.flow_counter import FlowCounter, SlotCounter, counted_flows
from grace_moe.cost.flows import Flows
from grace_moe.cost.links import tiers_of
from grace_moe.evaluation.chunks import chunks
from grace_moe.evaluation.route import route
from grace_moe.evaluation.serving import Serving, arrivals
from grace_moe.placement import Placement, check_same_model
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace, order_of_requests, tokens_of


def replay_flows(
    placement: Placement,
    trace: RoutingTrace,
    topology: Topology | None = None,
    *,
    parts: int = 1,
    phase: str | None = None,
    serving: Serving | None = None,
    seed: int = 0,
) -> list[Flows]:
    """Replay `trace` through `placement`, as `evaluate` does.

    Args:
        topology: links to count by, where they are not the placement's own.
        parts: into so many the requests are dealt; each has its flows. Their `total` is the whole trace's. Where there are as many
            rounds over all devices, a part takes whole rounds: its tokens come in as evenly as the trace's.
        phase: only tokens of `prefill` or `decode`, where the trace tells them apart and has both; None = all.

    Raises:
        MismatchError: trace and placement are of different models.
    """
    check_same_model(placement, trace)
    topology = placement.topology if topology is None else topology
    arrived = arrivals(placement, trace, Serving() if serving is None else serving)
    request = order_of_requests(trace)[0]
    rounds = request // topology.num_devices
    part = (rounds if rounds.max(initial=-1) + 1 >= parts else request) % parts
    chose = (trace.topk_ids.max(axis=(1, 2), initial=-1) >= 0) & tokens_of(trace, phase)
    counted = np.flatnonzero(chose)
    tokens = np.zeros((parts, topology.num_devices))
    np.add.at(tokens, (part[counted], arrived.source[counted]), 1)
    layers = []
    tiers = tiers_of(topology)
    for index, devices in enumerate(
        route(placement, trace, arrived, topology, policy=None if serving is None else serving.policy, seed=seed)
    ):
        slots, copies = SlotCounter(placement.layers[index], topology.num_devices, parts), FlowCounter(topology, tiers, parts)
        for chunk in chunks(len(counted), topology.num_devices):
            some = counted[chunk]
            slots.add(trace.topk_ids[some, index].astype(np.int64), devices[some], part[some])
            copies.add(devices[some], arrived.source[some], part[some])
        layers.append((slots, copies))
    return [counted_flows(layers, tokens[number], number) for number in range(parts)]
