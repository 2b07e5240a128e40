"""What will the busiest device carry on routing that the plan has not seen?

Requests are the independent unit. A placement's load on each device is known for every request of the planning trace and every
source node; requests drawn with replacement, dealt to the devices in turn, are days to come. What a day strays from the
mean is widened by sqrt(2): the plan was fitted to a sample no larger than the one it will meet.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from grace_moe.planning.joint_choice import JointChoiceTable
from grace_moe.topology import Topology

_DAYS = 64


def request_loads(
    ids: npt.NDArray[np.int64], request: npt.NDArray[np.int64], masks: npt.NDArray[np.int64], table: JointChoiceTable, seed: int
) -> npt.NDArray[np.float64]:
    """`[requests, N, D]` pairs that each device computes for a request whose source is on each node; replicas are drawn.

    Args:
        ids: `[T, k]`, -1 = none.
        request: `[T]` 0..requests - 1.
        masks: `[T, N]` from `visits`; all ones where replicas are drawn by weight alone.
    """
    loads = np.zeros((int(request.max(initial=-1)) + 1, masks.shape[1], len(table.node_of_D)))
    _request_loads(ids, request, masks, table.devices_ER, table.weights_ER, table.node_of_D, seed, loads)
    return loads


@njit(cache=True, nogil=True)
def _request_loads(ids: Any, request: Any, masks: Any, devices: Any, weights: Any, node_of: Any, seed: Any, loads: Any) -> None:
    np.random.seed(seed)
    for t in range(ids.shape[0]):
        for j in range(ids.shape[1]):
            e, drawn = ids[t, j], np.random.random()
            if e < 0:
                continue
            for source in range(masks.shape[1]):
                total = 0
                for r in range(devices.shape[1]):
                    total += weights[e, r] * (masks[t, source] >> node_of[devices[e, r]] & 1)
                left, r = drawn * total, -1
                while left >= 0:
                    r += 1
                    left -= weights[e, r] * (masks[t, source] >> node_of[devices[e, r]] & 1)
                loads[request[t], source, devices[e, r]] += 1


def expected_peak(loads: npt.NDArray[np.float64], topology: Topology, node_of_request: npt.NDArray[np.int64] | None, seed: int) -> float:
    """Mean over the days of the busiest device's load (over speed) over the mean load.

    Args:
        loads: `[requests, N, D]` from `request_loads`.
        node_of_request: `[requests]` where a front-end sends each; None = dealt to the devices in turn.
    """
    if not loads.sum():
        return 1.0
    rng = np.random.default_rng(seed)
    num_requests, speed = len(loads), topology.relative_speed
    if node_of_request is None:
        source = topology.node_of_device[np.arange(num_requests) % topology.num_devices]
        mean = np.bincount(source, minlength=topology.num_nodes) @ loads.mean(axis=0)
        kind = np.zeros(num_requests, np.int64)
    else:  # a request is replaced by another of its node
        source = kind = node_of_request
        mean = loads[np.arange(num_requests), source].sum(axis=0)
    by_kind, sizes = np.argsort(kind, kind="stable"), np.bincount(kind)
    first = (np.cumsum(sizes) - sizes)[kind]
    peaks = np.empty(_DAYS)
    for day in range(_DAYS):
        drawn = by_kind[first + (rng.random(num_requests) * sizes[kind]).astype(np.int64)]
        load = loads[drawn, source].sum(axis=0)
        load = np.maximum(mean + np.sqrt(2) * (load - mean), 0) / speed
        peaks[day] = load.max() / load.mean()
    return float(peaks.mean())
