"""The invariants of a placement, each by name; every `Placement` is checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Sequence

from grace_moe.errors import PlacementError
from grace_moe.files import MAX_LAYER_ID, MAX_LAYERS
from grace_moe.placement.layer import MAX_NODE_PRICE, REPLICA_CHOICES, LayerPlacement
from grace_moe.topology import Topology

WEIGHT_TOLERANCE = 1e-6


def check_invariants(layers: Sequence[LayerPlacement], *, num_experts: int, topology: Topology, replica_choice: str, source: str) -> None:
    """Raise unless the layers make a whole placement.

    Invariants: `layers_named_once`, `every_expert_placed`, `devices_exist`, `one_replica_per_device`,
    `weights_are_shares`, `decode_weights_are_shares`, `node_prices_in_range`, `source_costs_whole`, `replica_choice_known`.

    Raises:
        PlacementError: naming the layer, the expert and the mend.
    """
    _check_choice(source, "replica_choice", replica_choice)
    if not layers or len({layer.layer_id for layer in layers}) != len(layers):
        raise PlacementError(source, "layers", "none, or a layer_id twice", "give each MoE layer once")
    if len(layers) > MAX_LAYERS:
        raise PlacementError(source, "layers", f"{len(layers)} are over the limit of {MAX_LAYERS}", "is it the right file?")
    for layer in layers:
        where = f"layer {layer.layer_id}"
        if not 0 <= layer.layer_id <= MAX_LAYER_ID:
            raise PlacementError(source, where, f"its number is not in 0..{MAX_LAYER_ID}", "give the model's own number of the layer")
        if layer.replica_choice:
            _check_choice(source, f"{where}: replica_choice", layer.replica_choice)
        _check_sizes(source, where, layer, num_experts, topology.num_nodes)
        for expert, devices in enumerate(layer.devices_of_expert):
            _check_replicas(source, f"{where}: devices_of_expert[{expert}]", devices, topology.num_devices)
            for name in _shares(layer):
                _check_shares(source, f"{where}: {name}[{expert}]", getattr(layer, name)[expert], len(devices))


def _check_choice(source: str, field: str, value: str) -> None:
    if value not in REPLICA_CHOICES:
        raise PlacementError(source, field, f"{value!r} is unknown", f"use one of {', '.join(REPLICA_CHOICES)}")


def _shares(layer: LayerPlacement) -> tuple[str, ...]:
    """The layer's fields that hold weights."""
    return ("replica_weights", "decode_weights") if layer.decode_weights else ("replica_weights",)


def _check_sizes(source: str, where: str, layer: LayerPlacement, num_experts: int, num_nodes: int) -> None:
    for name in ("devices_of_expert", *_shares(layer)):
        rows = len(getattr(layer, name))
        if rows != num_experts:
            mend = "give every expert a row: none may be lost"
            raise PlacementError(source, f"{where}: {name}", f"{rows} experts instead of {num_experts}", mend)
    prices, costs = layer.node_prices, layer.source_costs
    if prices and (len(prices) != num_nodes or not all(0 <= p <= MAX_NODE_PRICE for p in prices)):
        mend = f"give 0..{MAX_NODE_PRICE} a node, or none"
        raise PlacementError(source, f"{where}: node_prices", f"{list(prices)[:9]} are not {num_nodes} prices", mend)
    if costs and (len(costs) != num_experts or any(len(row) != num_nodes or not all(map(math.isfinite, row)) for row in costs)):
        mend = "give each expert a row, or none at all"
        raise PlacementError(source, f"{where}: source_costs", f"not {num_experts} rows of {num_nodes} numbers", mend)


def _check_replicas(source: str, field: str, devices: tuple[int, ...], num_devices: int) -> None:
    if not devices:
        raise PlacementError(source, field, "the expert is on no device", "place every expert at least once")
    for device in devices:
        if not 0 <= device < num_devices:
            raise PlacementError(source, field, f"names device {device}", f"the topology has devices 0..{num_devices - 1}")
    if len(set(devices)) != len(devices):
        raise PlacementError(source, field, f"has two replicas on one device {devices}", "keep at most one replica a device")


def _check_shares(source: str, field: str, weights: tuple[float, ...], replicas: int) -> None:
    if len(weights) != replicas:
        raise PlacementError(source, field, f"{len(weights)} weights for {replicas} replicas", "give each replica its weight")
    if not all(math.isfinite(w) and w >= 0 for w in weights) or abs(sum(weights) - 1) > WEIGHT_TOLERANCE:
        raise PlacementError(source, field, f"{weights} are not shares", "give weights of 0 or more that sum to 1")
