"""The placement file: JSON, version 1 (docs/formats.md). Knows fields and layers, not `Placement`."""

from pathlib import Path
from typing import Any

from grace_moe.errors import PlacementError
from grace_moe.files import (
    MAX_EXPERTS,
    MAX_JSON_BYTES,
    MAX_LAYER_ID,
    check_budget,
    dump_json,
    parse_json,
    read_bytes,
    write_atomically,
)
from grace_moe.placement.layer import LayerPlacement
from grace_moe.topology import Topology

FORMAT = "grace-moe.placement"
VERSION = 1
_KEYS = ("format", "version", "model", "num_experts", "topology", "replica_choice", "provenance", "layers")
_LAYER_KEYS = ("layer_id", "devices_of_expert", "replica_weights", "decode_weights", "node_prices", "source_costs", "replica_choice")
_MEND = "write the placement again"


def read_fields(path: Path) -> dict[str, Any]:
    """The fields of a `Placement` in a file; formats, types and ids are checked, invariants are the placement's to check.

    Raises:
        PlacementError: missing, not JSON, of another format or a newer version, or of other types.
        TopologyError: its topology is out of range.
    """
    source = str(path)
    data = read_bytes(path, PlacementError, MAX_JSON_BYTES)
    value = _checked_format(source, parse_json(data, PlacementError, source))
    num_experts, layers = value.get("num_experts"), value.get("layers")
    if type(num_experts) is not int or not 1 <= num_experts <= MAX_EXPERTS:
        raise PlacementError(source, "num_experts", f"{num_experts!r} is not in 1..{MAX_EXPERTS}", _MEND)
    if not isinstance(layers, list):
        raise PlacementError(source, "layers", "missing or not a list", _MEND)
    topology, provenance = value.get("topology"), value.get("provenance", {})
    if not isinstance(topology, dict):
        raise PlacementError(source, "topology", f"{type(topology).__name__} is not an object", _MEND)
    if not isinstance(provenance, dict):
        raise PlacementError(source, "provenance", "not an object", _MEND)
    cluster = Topology.from_dict(topology, source=f"{source}: topology")
    check_budget(8 * len(layers) * cluster.num_devices, len(data), kind=PlacementError, source=source, field="layers x devices")
    return {
        "topology": cluster,
        "num_experts": num_experts,
        "layers": tuple(_layer(source, index, layer) for index, layer in enumerate(layers)),
        "model": _text(source, "model", value.get("model", "")),
        "replica_choice": _text(source, "replica_choice", value.get("replica_choice", "tar")),
        "provenance": provenance,
        "source": source,
    }


def write_fields(fields: dict[str, Any], path: Path) -> None:
    """Write a placement's fields whole, or nothing; the same fields give the same bytes."""
    value = {
        "format": FORMAT,
        "version": VERSION,
        "model": fields["model"],
        "num_experts": fields["num_experts"],
        "topology": fields["topology"].to_dict(),
        "replica_choice": fields["replica_choice"],
        "provenance": fields["provenance"],
        "layers": [_value_of_layer(layer) for layer in fields["layers"]],
    }
    write_atomically(path, dump_json(value))


def _checked_format(source: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        found = value.get("format") if isinstance(value, dict) else type(value).__name__
        raise PlacementError(source, "format", f"{found!r} is not {FORMAT!r}", "give a placement that `grace-moe plan` wrote")
    version = value.get("version")
    if type(version) is not int or version < 1:
        raise PlacementError(source, "version", f"{version!r} is not a version number", _MEND)
    if version > VERSION:
        raise PlacementError(source, "version", f"{version} is newer than {VERSION}", "upgrade grace-moe")
    _check_keys(source, "", value, _KEYS)
    return value


def _check_keys(source: str, where: str, value: dict[str, Any], keys: tuple[str, ...]) -> None:
    for key in value:
        if key not in keys:
            raise PlacementError(source, f"{where}{key}", "unknown key", f"it may have {', '.join(keys)}")


def _value_of_layer(layer: LayerPlacement) -> dict[str, Any]:
    return {
        "layer_id": layer.layer_id,
        "devices_of_expert": [list(devices) for devices in layer.devices_of_expert],
        "replica_weights": [list(weights) for weights in layer.replica_weights],
        **({"decode_weights": [list(weights) for weights in layer.decode_weights]} if layer.decode_weights else {}),
        **({"node_prices": list(layer.node_prices)} if layer.node_prices else {}),
        **({"source_costs": [list(row) for row in layer.source_costs]} if layer.source_costs else {}),
        **({"replica_choice": layer.replica_choice} if layer.replica_choice else {}),
    }


def _text(source: str, field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise PlacementError(source, field, f"{value!r} is not text", _MEND)
    return value


def _layer(source: str, index: int, value: Any) -> LayerPlacement:
    where = f"layers[{index}]"
    if not isinstance(value, dict):
        raise PlacementError(source, where, f"{type(value).__name__} is not an object", _MEND)
    _check_keys(source, f"{where}.", value, _LAYER_KEYS)
    layer_id = value.get("layer_id")
    if type(layer_id) is not int or not 0 <= layer_id <= MAX_LAYER_ID:
        raise PlacementError(source, f"{where}.layer_id", f"{layer_id!r} is not a layer number", _MEND)
    devices = _rows(source, f"{where}.devices_of_expert", value.get("devices_of_expert"), (int,), "whole numbers")
    weights = _rows(source, f"{where}.replica_weights", value.get("replica_weights"), (int, float), "numbers")
    in_decode = _rows(source, f"{where}.decode_weights", value.get("decode_weights", []), (int, float), "numbers")
    (prices,) = _rows(source, f"{where}.node_prices", [value.get("node_prices", [])], (int, float), "numbers")
    costs = _rows(source, f"{where}.source_costs", value.get("source_costs", []), (int, float), "numbers")
    return LayerPlacement(
        layer_id=layer_id,
        devices_of_expert=devices,
        replica_weights=tuple(_floats(source, f"{where}.replica_weights", row) for row in weights),
        decode_weights=tuple(_floats(source, f"{where}.decode_weights", row) for row in in_decode),
        node_prices=_floats(source, f"{where}.node_prices", prices),
        source_costs=tuple(_floats(source, f"{where}.source_costs", row) for row in costs),
        replica_choice=_text(source, f"{where}.replica_choice", value.get("replica_choice", "")),
    )


def _floats(source: str, field: str, row: tuple[int | float, ...]) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in row)
    except OverflowError as error:
        raise PlacementError(source, field, "a number is out of range", _MEND) from error


def _rows(source: str, field: str, value: Any, types: tuple[type, ...], called: str) -> tuple[tuple[Any, ...], ...]:
    if not isinstance(value, list) or not all(isinstance(row, list) for row in value):
        raise PlacementError(source, field, "missing, or not a list of lists", _MEND)
    if any(type(item) not in types for row in value for item in row):
        raise PlacementError(source, field, f"not all are {called}", _MEND)
    return tuple(tuple(row) for row in value)
