"""Where everything is sent everywhere: balance is all there is to plan, and all devices are one pool of slots.

Copies go to experts as EPLB deals them. Then the search of step 9 swaps them between all devices: for loads that are even on the trace's
requests, and stay so on others (the variance of step 6). Replicas are drawn by weight alone, and the split of step 10 sets the weights.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from grace_moe.placement import LayerPlacement, held_by_devices
from grace_moe.planning.grace.device_packing import hosts_of_slots
from grace_moe.planning.grace.problem import LayerProblem
from grace_moe.planning.grace.replica_shares import host_table, layer_of_weights, primary_first
from grace_moe.planning.grace.schedule import PACK, REPACK
from grace_moe.planning.grace.search.devices import NodeShare, pack_devices
from grace_moe.planning.grace.search.node_copies import NodeLimits, seed_copies
from grace_moe.planning.grace.split import even_out
from grace_moe.planning.grace.uncertainty import load_shares


def levelled(problem: LayerProblem) -> LayerPlacement:
    """The layer with its load as even as can be, replicas drawn by weight."""
    devices, speed = problem.topology.num_devices, problem.topology.relative_speed
    share, covariance = load_shares(problem.ids, problem.unit, problem.experts, problem.node_of_request)
    pool = NodeLimits(slots=np.array([devices * min(problem.slots, problem.experts)]), devices=np.array([devices]), capacity=np.ones(1))
    held = None if problem.serving is None else held_by_devices(problem.serving, devices)
    load = np.bincount(problem.ids[problem.ids >= 0], minlength=problem.experts).astype(float)
    node = NodeShare(
        copies=seed_copies(share, pool)[0],
        load=load,
        share_here=np.ones(problem.experts),
        rows=np.full((1, 1), -1),  # no token saves anything by where its experts are
        fair=max(load.sum(), 1.0) * speed / speed.sum(),
        held=held,
    )
    options = PACK if held is None else replace(REPACK, stay=REPACK.stay + problem.device_price * problem.move_price)
    slots = pack_devices(node, problem.slots, covariance * devices**2, options, problem.seed)
    hosts = hosts_of_slots(slots, range(devices), problem.experts)
    used = np.flatnonzero(load)
    cells = np.stack([used, np.ones_like(used)], axis=1), load[used]
    weights, _ = even_out(cells, host_table(hosts), np.zeros(devices, np.int64), speed)
    return primary_first(layer_of_weights(problem.layer_id, hosts, weights, (), "wrr"))
