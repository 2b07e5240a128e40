"""A matrix of what it costs each rank to send to each other, as is proposed for SGLang's `--eplb-topology`, as a topology.

`{"rank_cost_matrix": [[0.0, 1.0], [1.0, 0.0]]}`: rows and columns are ranks, the diagonal is 0, and costs are relative
(sgl-project/sglang#37923, open in November 2026).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.errors import TopologyError
from grace_moe.files import MAX_DEVICES
from grace_moe.topology.parts import DEFAULT_PRESET, PRESETS, Device, Node
from grace_moe.topology.values import number_of, sequence

KEY = "rank_cost_matrix"
Floats = npt.NDArray[np.float64]


def fields_of_costs(value: dict[str, Any], source: str) -> dict[str, Any]:
    """The fields of a `Topology` in a file of rank costs.

    Nodes are the equal blocks of consecutive ranks between which sending costs most over what it costs inside; one node, where it costs
    more between none. Costs become bandwidths in their ratio, of which the mean cost inside a node is the preset's link.

    Raises:
        TopologyError: not a square matrix of costs of 0 or more, or one with a cost of a rank to itself.
    """
    costs = _matrix(value[KEY], source)
    ranks, size = len(costs), _block(costs)
    same = _same_block(ranks, size)
    costs = np.maximum(costs, costs[costs > 0].min() if costs.any() else 1.0)  # free links, and a rank's own, are as good as the best
    inside = same & ~np.eye(ranks, dtype=bool)
    intra, cross = PRESETS[DEFAULT_PRESET]
    rates = intra.bandwidth_bytes_per_s * (costs[inside].mean() if inside.any() else 1.0) / costs
    if size < ranks:
        cross = replace(cross, bandwidth_bytes_per_s=float(1 / (1 / rates[~same]).mean()))
    devices = tuple(Device(name=f"device{g}") for g in range(size))
    return {
        "nodes": tuple(Node(name=f"node{n}", devices=devices) for n in range(ranks // size)),
        "intra_node": intra,
        "cross_node": cross,
        "bandwidth": tuple(map(tuple, rates.tolist())),
    }


def _matrix(value: Any, source: str) -> Floats:
    rows = sequence(source, KEY, value)
    if not 1 <= len(rows) <= MAX_DEVICES or any(len(sequence(source, f"{KEY}[{i}]", row)) != len(rows) for i, row in enumerate(rows)):
        raise TopologyError(source, KEY, "not square, or of no ranks or too many", "give a row and a column for each rank")
    costs = np.array([[number_of(source, f"{KEY}[{i}][{j}]", cost) for j, cost in enumerate(row)] for i, row in enumerate(rows)])
    if (costs < 0).any() or np.diagonal(costs).any():
        raise TopologyError(
            source, KEY, "a cost is below 0, or a rank's cost to itself is not 0", "give relative costs, and 0 on the diagonal"
        )
    return costs


def _block(costs: Floats) -> int:
    """Ranks of a node: of all ways to cut the ranks into equal blocks, the one where the best link between costs most over the worst
    inside."""
    ranks = len(costs)
    best, found = 1.0, ranks
    for size in (size for size in range(2, ranks) if ranks % size == 0):
        same = _same_block(ranks, size)
        inside, across = costs[same].max(), costs[~same].min()
        if across > best * inside:
            best, found = across / inside if inside else np.inf, size
    return found


def _same_block(ranks: int, size: int) -> npt.NDArray[np.bool_]:
    """`[ranks, ranks]` whether two ranks are in one block."""
    block = np.arange(ranks) // size
    same: npt.NDArray[np.bool_] = block[:, None] == block[None, :]
    return same
