"""LPLB: a batch's tokens shared among the replicas by a linear program, so that the busiest device has least.

Source: DeepSeek's LPLB (github.com/deepseek-ai/LPLB), by its description. Its own placement gives an expert one further
copy at most, along the edges of a cube or torus; this takes any placement. It knows no locality: of an expert's tokens the
first in the batch go to its first replica. A vertex of the program's polytope is taken, not an interior point: only the
busiest device is as low as can be.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import linprog

from grace_moe.choice.batch import Ints, batch_loads, deal
from grace_moe.placement import LayerPlacement
from grace_moe.topology import Topology


def lplb(layer: LayerPlacement, topology: Topology, topk_ids: Ints, sources: Ints) -> Ints:
    """`[tokens, k]` device of each pair; see `BatchPolicy`. `sources` play no part."""
    experts = np.repeat(np.arange(len(layer.devices_of_expert)), [len(row) for row in layer.devices_of_expert])
    devices = np.array([device for row in layer.devices_of_expert for device in row], dtype=np.int64)
    loads = batch_loads(topk_ids, len(layer.devices_of_expert))
    shares = least_maximum(loads, experts, devices, topology.relative_speed)
    return deal(topk_ids, experts, devices, round_shares(loads, experts, shares))


def least_maximum(loads: Ints, experts: Ints, devices: Ints, speed: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """`[replicas]` tokens of each, not yet whole: the program's optimum.

    Minimise t, where each device's tokens over its speed are at most t, and an expert's replicas take all of its tokens.

    Args:
        loads: `[experts]` tokens of the batch.
        experts, devices: `[replicas]`.
        speed: `[devices]`.
    """
    shares = loads[experts].astype(np.float64)
    free = np.flatnonzero((np.bincount(experts, minlength=len(loads))[experts] > 1) & (shares > 0))
    if not len(free):
        return shares
    shares[free] = 0.0
    fixed = np.bincount(devices, weights=shares, minlength=len(speed)) / speed
    asked, expert = np.unique(experts[free], return_inverse=True)
    columns = np.arange(len(free))
    per_device: Any = sparse.csr_array((1 / speed[devices[free]], (devices[free], columns)), shape=(len(speed), len(free)))
    per_expert: Any = sparse.csr_array((np.ones(len(free)), (expert, columns)), shape=(len(asked), len(free) + 1))
    at_most: Any = sparse.hstack([per_device, sparse.csr_array(-np.ones((len(speed), 1)))], format="csr")
    found = linprog(
        np.append(np.zeros(len(free)), 1.0),
        A_ub=at_most,
        b_ub=-fixed,
        A_eq=per_expert,
        b_eq=loads[asked],
        method="highs",
    )
    assert found.x is not None, found.message  # dealing evenly is always feasible, and t is at least 0
    shares[free] = found.x[:-1]
    return shares


def round_shares(loads: Ints, experts: Ints, shares: npt.NDArray[np.float64]) -> Ints:
    """`[replicas]` whole tokens: rounded down, then the largest remainders of each expert up. Ties: the first replica.

    Args:
        loads: `[experts]` what each expert's shares sum to.
        experts, shares: `[replicas]`, experts ascending.
    """
    counts = np.floor(np.maximum(shares, 0.0) + 1e-6).astype(np.int64)
    missing = loads - np.bincount(experts, weights=counts, minlength=len(loads)).astype(np.int64)
    order = np.lexsort((np.arange(len(shares)), -np.round(shares - counts, 6), experts))
    rank = np.arange(len(shares)) - np.searchsorted(experts, experts)  # within the expert; `order` keeps experts together
    counts[order] += rank < missing[experts]
    return counts
