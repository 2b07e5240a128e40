"""A placement on the devices that are left, when some have died."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TypeVar

from grace_moe.errors import UsageError
from grace_moe.placement import LayerPlacement, Placement, even_weights
from grace_moe.topology import Topology

T = TypeVar("T")


def without_devices(placement: Placement, dead: Collection[int]) -> Placement:
    """The same placement without some devices, the others numbered anew in their old order.

    Replicas elsewhere take over by their weights. An expert that only dead devices held goes to the device with fewest experts, on the
    node of its primary where one is left. Devices then hold more experts than others: `equalise` mends that.

    Raises:
        UsageError: no device is left.
    """
    old = placement.topology
    left = [device for device in range(old.num_devices) if device not in dead]
    if not left:
        raise UsageError(f"{placement.source}: all {old.num_devices} devices are dead")
    nodes = sorted({int(old.node_of_device[device]) for device in left})
    topology = _topology(old, left, nodes)
    return replace(placement, topology=topology, layers=tuple(_layer(layer, old, left, nodes) for layer in placement.layers))


def _topology(old: Topology, left: list[int], nodes: list[int]) -> Topology:
    kept = [
        replace(old.nodes[n], devices=tuple(d for i, d in zip(old.devices_of_node(n), old.nodes[n].devices, strict=True) if i in left))
        for n in nodes
    ]
    bandwidth = None if old.bandwidth is None else tuple(_of(old.bandwidth[device], left) for device in left)
    tiers = [replace(tier, groups=tuple(filter(None, (_renumbered(group, left) for group in tier.groups)))) for tier in old.tiers]
    return replace(old, nodes=tuple(kept), bandwidth=bandwidth, tiers=tuple(tiers))


def _renumbered(devices: Sequence[int], left: list[int]) -> tuple[int, ...]:
    return tuple(left.index(device) for device in devices if device in left)


def _layer(layer: LayerPlacement, topology: Topology, left: list[int], nodes: list[int]) -> LayerPlacement:
    number = {device: new for new, device in enumerate(left)}
    held = [
        [(number[device], weight) for device, weight in zip(devices, weights, strict=True) if device in number]
        for devices, weights in zip(layer.devices_of_expert, layer.replica_weights, strict=True)
    ]
    counts = Counter(device for replicas in held for device, _ in replicas)
    for replicas, (primary, *_) in zip(held, layer.devices_of_expert, strict=True):
        if not replicas:
            home = topology.node_of_device[primary]
            to = min(range(len(left)), key=lambda d: (topology.node_of_device[left[d]] != home, counts[d], d))
            replicas.append((to, 1.0))
            counts[to] += 1
    devices = tuple(tuple(d for d, _ in replicas) for replicas in held)
    shares = zip(held, even_weights(devices), strict=True)
    return replace(
        layer,
        devices_of_expert=devices,
        replica_weights=tuple(_shares([w for _, w in replicas], even) for replicas, even in shares),
        decode_weights=(),
        node_prices=_of(layer.node_prices, nodes) if layer.node_prices else (),
        source_costs=tuple(_of(costs, nodes) for costs in layer.source_costs),
    )


def _shares(weights: list[float], even: tuple[float, ...]) -> tuple[float, ...]:
    total = sum(weights)
    return tuple(weight / total for weight in weights) if total > 0 else even


def _of(values: Sequence[T], which: list[int]) -> tuple[T, ...]:
    return tuple(values[i] for i in which)
