"""The invariants of a placement, each by name. Public: every planner's test ends with `check`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from grace_moe.errors import PlacementError

if TYPE_CHECKING:
    from grace_moe.placement.model import LayerPlacement, Placement

WEIGHT_TOLERANCE = 1e-6


def check(placement: Placement) -> None:
    """Raise unless the placement is whole.

    Invariants: `layers_named_once`, `every_expert_placed`, `devices_exist`, `one_replica_per_device`,
    `weights_are_shares`, `decode_weights_are_shares`, `node_prices_in_range`, `source_costs_whole`, `replica_choice_known`.

    Raises:
        PlacementError: naming the layer, the expert and the mend.
    """
    source = placement.source
    _check_choice(source, "replica_choice", placement.replica_choice)
    if not placement.layers or len(set(placement.layer_ids)) != len(placement.layers):
        raise PlacementError(source, "layers", "none, or a layer_id twice", "give each MoE layer once")
    for layer in placement.layers:
        _check_layer(source, layer, placement.num_experts, placement.topology.num_devices, placement.topology.num_nodes)


def _check_choice(source: str, field: str, value: str) -> None:
    from grace_moe.placement.model import REPLICA_CHOICES

    if value not in REPLICA_CHOICES:
        raise PlacementError(source, field, f"{value!r} is unknown", f"use one of {', '.join(REPLICA_CHOICES)}")


def _check_layer(source: str, layer: LayerPlacement, num_experts: int, num_devices: int, num_nodes: int) -> None:
    from grace_moe.placement.model import MAX_NODE_PRICE

    where = f"layer {layer.layer_id}"
    if layer.replica_choice:
        _check_choice(source, f"{where}: replica_choice", layer.replica_choice)
    names = ("devices_of_expert", "replica_weights", *(("decode_weights",) if layer.decode_weights else ()))
    for name in names:
        rows = getattr(layer, name)
        if len(rows) != num_experts:
            raise PlacementError(
                source, f"{where}: {name}", f"{len(rows)} experts instead of {num_experts}", "give every expert a row: none may be lost"
            )
    prices = layer.node_prices
    if prices and (len(prices) != num_nodes or not all(0 <= p <= MAX_NODE_PRICE for p in prices)):
        raise PlacementError(
            source, f"{where}: node_prices", f"{list(prices)[:9]} are not {num_nodes} prices", f"give 0..{MAX_NODE_PRICE} a node, or none"
        )
    costs = layer.source_costs
    if costs and (len(costs) != num_experts or any(len(row) != num_nodes or not all(map(math.isfinite, row)) for row in costs)):
        raise PlacementError(
            source, f"{where}: source_costs", f"not {num_experts} rows of {num_nodes} numbers", "give each expert a row, or none at all"
        )
    for expert, devices in enumerate(layer.devices_of_expert):
        field = f"{where}: devices_of_expert[{expert}]"
        if not devices:
            raise PlacementError(source, field, "the expert is on no device", "place every expert at least once")
        for device in devices:
            if not 0 <= device < num_devices:
                raise PlacementError(source, field, f"names device {device}", f"the topology has devices 0..{num_devices - 1}")
        if len(set(devices)) != len(devices):
            raise PlacementError(source, field, f"has two replicas on one device {devices}", "keep at most one replica a device")
        for name in names[1:]:
            _check_shares(source, f"{where}: {name}[{expert}]", getattr(layer, name)[expert], len(devices))


def _check_shares(source: str, field: str, weights: tuple[float, ...], replicas: int) -> None:
    if len(weights) != replicas:
        raise PlacementError(source, field, f"{len(weights)} weights for {replicas} replicas", "give each replica its weight")
    if not all(math.isfinite(w) and w >= 0 for w in weights) or abs(sum(weights) - 1) > WEIGHT_TOLERANCE:
        raise PlacementError(source, field, f"{weights} are not shares", "give weights of 0 or more that sum to 1")


def slots_within(placement: Placement, slots_per_device: int) -> bool:
    """Whether no device holds more than this many experts in any layer."""
    return bool((placement.slots_per_device() <= slots_per_device).all())
