"""One layer levelled by its experts' loads: from what serves, exchange by exchange, the cheapest moves first.

Replicas share an expert's tokens by their weights, and weights cost nothing to change: they are set anew after each exchange, so that
devices are as even as they can be (`exchanges.share_out`). An exchange is either two experts that change places, or a replica that gives
its slot to a replica of another expert. Each is worth what it takes from the sum of the fourth powers of the devices' loads, over the price
of its moves: the busiest device counts most, and those next to it count too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grace_moe.placement import LayerPlacement
from grace_moe.topology import Topology

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

EVEN = 0.002
"""Busiest device over the mean, less one: a layer that is so even is not levelled further. Not tuned."""
NEAR = 0.4
"""Price of a move inside a node, of one between nodes, where exchanges are compared: it spares bytes, and the budget hardly. Chosen on
loads of GLM-5.2, web to mathematics, every sixth layer."""


@dataclass(frozen=True, kw_only=True)
class Levelled:
    """A layer after some exchanges. E experts, D devices."""

    holds: Bools
    """`[E, D]`"""
    shares: Floats
    """`[E, D]` part of each expert's tokens that each device computes."""
    moved: int
    """Copies that devices hold and did not hold at first."""
    from_other_nodes: int
    """Those of them that no device of the node held at first."""


def shares_of(layer: LayerPlacement, num_devices: int) -> Floats:
    """`[E, D]` part of each expert's tokens that each device computes, by the replicas' weights."""
    shares = np.zeros((len(layer.devices_of_expert), num_devices))
    for expert, (devices, weights) in enumerate(zip(layer.devices_of_expert, layer.replica_weights, strict=True)):
        shares[expert, list(devices)] = weights
    return shares


def levelled(layer: LayerPlacement, topology: Topology, loads: Floats, *, most_moves: int) -> Iterator[Levelled]:
    """The layer with its weights set anew, and then after each exchange, as long as any helps and moves are at most so many.

    Args:
        loads: `[E]` of any scale.
    """
    from grace_moe.adapt.by_counts import exchanges  # compiles: commands that only describe themselves do without

    shares = shares_of(layer, topology.num_devices)
    start = shares > 0
    for expert, devices in enumerate(layer.devices_of_expert):
        start[expert, list(devices)] = True
    even = topology.relative_speed / topology.relative_speed.sum()
    node = topology.node_of_device
    at_first = np.stack([start[:, node == n].any(axis=1) for n in range(topology.num_nodes)], axis=1)[:, node]
    price = np.where(start, 0.0, np.where(at_first, NEAR, 1.0))
    total = loads.sum()
    load = loads / total if total > 0 else np.zeros(len(loads))
    holds, parts = start.copy(), shares * load[:, None]
    least = np.inf
    while True:
        exchanges.share_out(load, holds, parts, even)
        relative = parts.sum(axis=0) / even
        unevenness = float((relative**4).sum())
        come = holds & ~start
        moved, far = int(come.sum()), int((come & ~at_first).sum())
        if (
            moved > most_moves or unevenness > least - exchanges.WORTH
        ):  # what an exchange is worth is estimated: one may turn out to be worth nothing
            return
        least = unevenness
        given = np.where(load[:, None] > 0, parts / np.maximum(load, 1e-300)[:, None], holds / holds.sum(axis=1, keepdims=True))
        yield Levelled(holds=holds.copy(), shares=given, moved=moved, from_other_nodes=far)
        if relative.max() <= 1 + EVEN or not exchanges.exchange(load, holds, parts, even, price):
            return
