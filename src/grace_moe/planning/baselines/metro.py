"""METRO: all of an expert's tokens to one replica, so that no device has to load many experts.

Source: arXiv 2512.09277. In decode a layer takes as long as reading the weights of the experts active on the busiest device:
their number, not their tokens, is what to balance (the paper's MIN-EXP-ROUTING; some optimum uses one replica an expert).
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import maximum_bipartite_matching

from grace_moe.placement import LayerPlacement
from grace_moe.planning.batch_choice import Ints, batch_loads
from grace_moe.planning.request import check_choice
from grace_moe.topology import Topology

ORDERS = ("fewest", "id")


def metro(layer: LayerPlacement, topology: Topology, topk_ids: Ints, sources: Ints, *, order: str = "fewest", exact: bool = False) -> Ints:
    """`[tokens, k]` device of each pair; see `BatchPolicy`. `sources` and speeds play no part.

    Args:
        order: which active expert chooses first: the one with the `fewest` replicas (on OLMoE routing 2 to 9% fewer active
            than by id), or by `id`. The paper's kernel has no order: experts choose in parallel.
        exact: the optimum instead of the greedy.

    Raises:
        UsageError: another order.
    """
    check_choice("order", order, ORDERS)
    hosts = layer.devices_of_expert
    active = np.flatnonzero(batch_loads(topk_ids, len(hosts)))
    if order == "fewest":
        active = active[np.argsort([len(hosts[expert]) for expert in active], kind="stable")]
    device_of_expert = np.full(len(hosts) + 1, -1, dtype=np.int64)  # the last is "none"
    routed = greedy_devices([hosts[e] for e in active], topology.num_devices)
    if exact:
        routed = fewest_active([hosts[e] for e in active], routed, topology.num_devices)
    device_of_expert[active] = routed
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


def fewest_active(hosts: list[tuple[int, ...]], routed: list[int], num_devices: int) -> list[int]:
    """The device of each active expert, with the least possible maximum of active experts: bisection over a bipartite matching.

    Args:
        hosts: `[active][replicas]` devices.
        routed: `[active]` some solution, from above.
    """
    low, high = -(-len(hosts) // num_devices), max(np.bincount(routed)) if routed else 0
    while low < high:
        cap = (low + high) // 2
        columns = [device * cap + slot for devices in hosts for device in devices for slot in range(cap)]
        rows = np.repeat(np.arange(len(hosts)), [len(devices) * cap for devices in hosts])
        graph = sparse.csr_array((np.ones(len(columns), dtype=np.int8), (rows, columns)), shape=(len(hosts), num_devices * cap))
        slots = maximum_bipartite_matching(graph, perm_type="column")
        if (slots >= 0).all():
            routed, high = [int(slot) // cap for slot in slots], cap
        else:
            low = cap + 1
    return routed
