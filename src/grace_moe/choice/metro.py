"""METRO: all of an expert's tokens to one replica, so that no device has to load many experts.

Source: arXiv 2512.09277. In decode a layer takes as long as reading the weights of the experts active on the busiest device:
their number, not their tokens, is what to balance (the paper's MIN-EXP-ROUTING; some optimum uses one replica an expert).
"""

from __future__ import annotations

import numpy as np

from grace_moe.choice.batch import Ints, batch_loads
from grace_moe.placement import LayerPlacement
from grace_moe.topology import Topology


def metro(layer: LayerPlacement, topology: Topology, topk_ids: Ints, sources: Ints) -> Ints:
    """`[tokens, k]` device of each pair; see `BatchPolicy`. `sources` and speeds play no part.

    The active expert with the fewest replicas chooses first (on OLMoE routing 2 to 9% fewer active than by id). The paper's kernel
    has no order: experts choose in parallel.
    """
    hosts = layer.devices_of_expert
    active = np.flatnonzero(batch_loads(topk_ids, len(hosts)))
    active = active[np.argsort([len(hosts[expert]) for expert in active], kind="stable")]
    device_of_expert = np.full(len(hosts) + 1, -1, dtype=np.int64)  # the last is "none"
    device_of_expert[active] = greedy_devices([hosts[e] for e in active], topology.num_devices)
    return device_of_expert[topk_ids]


def greedy_devices(hosts: list[tuple[int, ...]], num_devices: int) -> list[int]:
    """The device of each active expert: of its hosts, the one with the fewest active so far. Ties: the first host.

    Args:
        hosts: `[active][replicas]` devices.
    """
    counts = [0] * num_devices
    routed = []
    for devices in hosts:
        device = min(devices, key=counts.__getitem__)
        counts[device] += 1
        routed.append(device)
    return routed
