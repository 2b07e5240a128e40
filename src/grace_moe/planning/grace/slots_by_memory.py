"""Placements whose devices hold no more than their memory allows: what the searches, which know equal slots, put beyond it moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from grace_moe.placement import LayerPlacement
from grace_moe.planning.grace.replica_shares import primary_first
from grace_moe.topology import Topology

Rows = list[dict[int, float]]
"""Per expert, the weight of each device that holds it."""


def rows_of(layer: LayerPlacement) -> Rows:
    """The weights of each expert's replicas, by device."""
    return [dict(zip(*row, strict=True)) for row in zip(layer.devices_of_expert, layer.replica_weights, strict=True)]


def with_rows(layer: LayerPlacement, rows: Rows) -> LayerPlacement:
    """The layer with these replicas, weights made to sum to 1 for each expert."""
    return replace(
        layer,
        devices_of_expert=tuple(tuple(row) for row in rows),
        replica_weights=tuple(tuple(weight / sum(row.values()) for weight in row.values()) for row in rows),
    )


def within_slots(layer: LayerPlacement, topology: Topology, slots: Sequence[int], load: npt.NDArray[np.float64]) -> LayerPlacement:
    """The layer as it is where it fits; else replicas are given up on devices with too many, then their lightest experts go to devices
    with room, on the same node where there is any.

    Args:
        slots: `[D]` most experts of each device, at least as many in all as there are experts.
        load: `[E]` of each expert.
    """
    rows = rows_of(layer)
    full = [device for device in range(len(slots)) if len(_held(rows, device)) > slots[device]]
    if not full:
        return layer
    for device in full:
        for expert in _spare(rows, device)[: len(_held(rows, device)) - slots[device]]:
            del rows[expert][device]
    for device in full:
        for expert in sorted(_held(rows, device), key=lambda e: (load[e], e))[: max(0, len(_held(rows, device)) - slots[device])]:
            rows[expert] = {_with_room(rows, device, topology, slots, load): 1.0}
    return primary_first(with_rows(layer, rows))


def _held(rows: Rows, device: int) -> list[int]:
    return [expert for expert, row in enumerate(rows) if device in row]


def _spare(rows: Rows, device: int) -> list[int]:
    """Experts that the device holds and others too, least weight first."""
    return sorted((e for e in _held(rows, device) if len(rows[e]) > 1), key=lambda e: (rows[e][device], e))


def _with_room(rows: Rows, away_from: int, topology: Topology, slots: Sequence[int], load: npt.NDArray[np.float64]) -> int:
    """The device that takes one more expert: of the same node first, then the one that carries least for its speed."""
    node, speed = topology.node_of_device, topology.relative_speed
    room = [device for device in range(len(slots)) if len(_held(rows, device)) < slots[device]]
    if not room:  # a replica elsewhere makes way
        device = next(d for d in range(len(slots)) if d != away_from and _spare(rows, d))
        del rows[_spare(rows, device)[0]][device]
        room = [device]
    carried = {d: sum(load[e] * rows[e][d] / sum(rows[e].values()) for e in _held(rows, d)) / speed[d] for d in room}
    return min(room, key=lambda d: (node[d] != node[away_from], carried[d], d))
