"""Canonical names: a plan depends on what is routed where, not on what experts and devices are called.

Experts are named by their tokens: the one that fires first is 0; of those that first fire together, the one that fires next. A token's
choices are in the order of these names. Devices of a node are named by speed. Random draws and ties in planning are then the same under any
other names. Two exceptions are the same to a plan: experts that fire in exactly the same tokens (or never), and devices of a node that are
equally fast. In a plan for time devices keep their own names: a copy comes into a node on the device of its sender's local rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.placement import LayerPlacement
from grace_moe.topology import Topology

_CHUNK = 1 << 14
"""Tokens at once, a multiple of 8; bounds memory."""


@dataclass(frozen=True, kw_only=True)
class CanonicalNames:
    """Canonical names of one layer's experts and of the devices."""

    experts: npt.NDArray[np.int64]
    """`[E]` original number of each canonical expert."""
    devices: npt.NDArray[np.int64]
    """`[D]` original number of each canonical device."""

    def canonical(self, layer: LayerPlacement) -> LayerPlacement:
        """A layer in original numbers, by canonical names; replicas in ascending order of their devices, without decode's own weights."""
        device = np.argsort(self.devices)
        rows = [
            sorted((int(device[d]), w) for d, w in zip(layer.devices_of_expert[expert], layer.replica_weights[expert], strict=True))
            for expert in self.experts
        ]
        return replace(
            layer,
            devices_of_expert=tuple(tuple(d for d, _ in row) for row in rows),
            replica_weights=tuple(tuple(w for _, w in row) for row in rows),
            decode_weights=(),
            source_costs=tuple(layer.source_costs[expert] for expert in self.experts) if layer.source_costs else (),
        )

    def original(self, layer: LayerPlacement) -> LayerPlacement:
        """A layer in canonical names, by original numbers; replicas keep their order."""
        name = np.argsort(self.experts)
        return replace(
            layer,
            devices_of_expert=tuple(tuple(int(self.devices[d]) for d in layer.devices_of_expert[expert]) for expert in name),
            replica_weights=tuple(layer.replica_weights[expert] for expert in name),
            source_costs=tuple(layer.source_costs[expert] for expert in name) if layer.source_costs else (),
        )


def expert_order(ids: npt.NDArray[np.integer[Any]], experts: int) -> npt.NDArray[np.int64]:
    """`[E]` experts by the tokens that chose them, as the module docstring says; those never chosen last.

    Args:
        ids: `[T, k]`, -1 = none.
    """
    parts = []
    for start in range(0, len(ids), _CHUNK):
        part = ids[start : start + _CHUNK]
        fires = np.zeros((experts, len(part)), bool)
        token, k = np.nonzero(part >= 0)
        fires[part[token, k], token] = True
        parts.append(np.packbits(fires, axis=1))  # the first token is the highest bit
    tokens = np.concatenate(parts, axis=1) if parts else np.zeros((experts, 0), np.uint8)
    return np.array(sorted(range(experts), key=lambda expert: tokens[expert].tobytes(), reverse=True), dtype=np.int64)


def renamed(ids: npt.NDArray[np.integer[Any]], order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """`[T, k]` choices by canonical names, ascending in each token, -1 (none) last."""
    name = np.append(np.argsort(order), len(order))  # the last entry is that of -1
    canonical = np.sort(name[ids], axis=1)
    return np.where(canonical == len(order), -1, canonical)


def device_order(topology: Topology, *, by_speed: bool = True) -> npt.NDArray[np.int64]:
    """`[D]` devices, those of a node from fast to slow, or as they are."""
    if not by_speed:
        return np.arange(topology.num_devices)
    return np.lexsort((-topology.relative_speed, topology.node_of_device)).astype(np.int64)


def in_order(topology: Topology, order: npt.NDArray[np.int64]) -> Topology:
    """The topology with each node's devices in this order, and their links with them.

    Args:
        order: `[D]`, as `device_order` gives it: devices of a node stay together.
    """
    name, every = np.argsort(order), [device for node in topology.nodes for device in node.devices]
    named = iter([every[device] for device in order])
    nodes = tuple(replace(node, devices=tuple(islice(named, len(node.devices)))) for node in topology.nodes)
    matrix = None if topology.bandwidth is None else np.array(topology.bandwidth)[np.ix_(order, order)]
    tiers = tuple(
        replace(tier, groups=tuple(tuple(sorted(int(name[d]) for d in group)) for group in tier.groups)) for tier in topology.tiers
    )
    return replace(topology, nodes=nodes, bandwidth=None if matrix is None else tuple(map(tuple, matrix.tolist())), tiers=tiers)


def canonical_names(topk_ids: npt.NDArray[np.integer[Any]], experts: int, devices: npt.NDArray[np.int64]) -> list[CanonicalNames]:
    """The names of every layer.

    Args:
        topk_ids: `[T, layers, k]`, -1 = none.
        devices: `[D]` as `device_order` gives them.
    """
    return [CanonicalNames(experts=expert_order(topk_ids[:, layer], experts), devices=devices) for layer in range(topk_ids.shape[1])]
