"""The placement file: JSON, version 1 (DESIGN.md, Files)."""

from pathlib import Path
from typing import Any

from grace_moe.errors import PlacementError
from grace_moe.files import dump_json, read_json, write_atomically
from grace_moe.placement.model import LayerPlacement, Placement
from grace_moe.topology import Topology

FORMAT = "grace-moe.placement"
VERSION = 1


def load_placement(path: Path) -> Placement:
    """Read a placement; types, ids and invariants are checked.

    Raises:
        PlacementError: missing, not JSON, of another format or a newer version, or an invariant broken.
        TopologyError: its topology is out of range.
    """
    source = str(path)
    value = read_json(path, PlacementError)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        found = value.get("format") if isinstance(value, dict) else type(value).__name__
        raise PlacementError(source, "format", f"{found!r} is not {FORMAT!r}", "give a placement that `grace-moe plan` wrote")
    version = value.get("version")
    if not isinstance(version, int):
        raise PlacementError(source, "version", f"{version!r} is not a whole number", "write the placement again")
    if version > VERSION:
        raise PlacementError(source, "version", f"{version} is newer than {VERSION}", "upgrade grace-moe")
    num_experts = value.get("num_experts")
    if not isinstance(num_experts, int) or not 1 <= num_experts <= 32_767:
        raise PlacementError(source, "num_experts", f"{num_experts!r} is not in 1..32767", "write the placement again")
    layers = value.get("layers")
    if not isinstance(layers, list):
        raise PlacementError(source, "layers", "missing or not a list", "write the placement again")
    return Placement(
        topology=Topology.from_dict(value.get("topology"), source=source),
        num_experts=num_experts,
        layers=tuple(_layer(source, index, layer) for index, layer in enumerate(layers)),
        model=str(value.get("model", "")),
        replica_choice=str(value.get("replica_choice", "tar")),
        provenance=dict(value["provenance"]) if isinstance(value.get("provenance"), dict) else {},
        source=source,
    )


def save_placement(placement: Placement, path: Path) -> None:
    """Write a placement; the same placement gives the same bytes."""
    value = {
        "format": FORMAT,
        "version": VERSION,
        "model": placement.model,
        "num_experts": placement.num_experts,
        "topology": placement.topology.to_dict(),
        "replica_choice": placement.replica_choice,
        "provenance": placement.provenance,
        "layers": [
            {
                "layer_id": layer.layer_id,
                "devices_of_expert": [list(devices) for devices in layer.devices_of_expert],
                "replica_weights": [list(weights) for weights in layer.replica_weights],
            }
            for layer in placement.layers
        ],
    }
    write_atomically(path, dump_json(value))


def _layer(source: str, index: int, value: Any) -> LayerPlacement:
    try:
        layer_id = value["layer_id"]
        devices = tuple(tuple(row) for row in value["devices_of_expert"])
        weights = tuple(tuple(row) for row in value["replica_weights"])
    except (KeyError, TypeError) as error:
        raise PlacementError(source, f"layers[{index}]", f"not of the form of a layer ({error!r})", "write the placement again") from error
    whole = (int,)
    if type(layer_id) not in whole or any(type(d) not in whole for row in devices for d in row):
        raise PlacementError(source, f"layers[{index}]", "layer_id and devices must be whole numbers", "write the placement again")
    if any(type(w) not in (int, float) for row in weights for w in row):
        raise PlacementError(source, f"layers[{index}].replica_weights", "must be numbers", "write the placement again")
    return LayerPlacement(
        layer_id=layer_id, devices_of_expert=devices, replica_weights=tuple(tuple(float(w) for w in row) for row in weights)
    )
