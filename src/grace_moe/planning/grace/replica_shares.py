"""From tables of weights to the replicas of a layer."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from grace_moe.placement import LayerPlacement

Hosts: TypeAlias = tuple[tuple[int, ...], ...]
"""Per expert, the devices (or nodes) that hold it."""


def host_table(hosts: Hosts) -> npt.NDArray[np.int64]:
    """`[E, R]` hosts, -1 = no replica."""
    replicas = np.array([len(row) for row in hosts])
    held = np.arange(replicas.max()) < replicas[:, None]
    table = np.full(held.shape, -1, dtype=np.int64)
    table[held] = np.fromiter(chain.from_iterable(hosts), np.int64)
    return table


def layer_of_weights(
    layer_id: int, hosts: Hosts, weights: npt.NDArray[np.float64], prices: tuple[float, ...], replica_choice: str = ""
) -> LayerPlacement:
    """A layer whose weights are made to sum to 1 for each expert.

    Args:
        weights: `[E, R]`, as `host_table` has the hosts.
        prices: of the nodes.
        replica_choice: the layer's own; empty = joint.
    """
    rows = (weights[expert, : len(row)] for expert, row in enumerate(hosts))
    shares = tuple(tuple(float(w) for w in row / row.sum()) for row in rows)
    return LayerPlacement(
        layer_id=layer_id,
        devices_of_expert=hosts,
        replica_weights=shares,
        node_prices=prices if any(prices) else (),
        replica_choice=replica_choice,
    )


def primary_first(layer: LayerPlacement) -> LayerPlacement:
    """The replica of the largest weight is the primary; ties go to the lower device."""
    pairs = [
        sorted(zip(devices, weights, strict=True), key=lambda pair: (-pair[1], pair[0]))
        for devices, weights in zip(layer.devices_of_expert, layer.replica_weights, strict=True)
    ]
    return replace(
        layer,
        devices_of_expert=tuple(tuple(device for device, _ in row) for row in pairs),
        replica_weights=tuple(tuple(weight for _, weight in row) for row in pairs),
    )
