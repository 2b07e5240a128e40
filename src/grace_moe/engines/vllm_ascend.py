"""vllm-ascend: its expert map, of MoE layers and devices (`expert_map_path`, the legacy model runner)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grace_moe.engines.exported import Exported
from grace_moe.engines.recordings.imported import Hints
from grace_moe.engines.slot_map import SlotMap
from grace_moe.engines.slot_tables import matrix, slot_map
from grace_moe.errors import PlacementError
from grace_moe.files import dump_json, read_json

_MEND = "give an expert map of vllm-ascend"


def export_map(slots: SlotMap) -> Exported:
    """`{"moe_layer_count", "layer_list": [{"layer_id", "device_count", "device_list": [{"device_id", "device_expert"}]}]}`; layers
    count from 0, MoE layers only."""
    layers = [
        {
            "layer_id": index,
            "device_count": slots.num_ranks,
            "device_list": [
                {"device_id": device, "device_expert": experts.tolist()} for device, experts in enumerate(row.reshape(slots.num_ranks, -1))
            ],
        }
        for index, row in enumerate(slots.physical_to_logical)
    ]
    return Exported(
        data=dump_json({"moe_layer_count": len(layers), "layer_list": layers}),
        launch=(
            f"vllm serve MODEL --data-parallel-size {slots.num_ranks} --enable-expert-parallel \\\n"
            """  --additional-config '{"eplb_config": {"expert_map_path": "PLAN"}}'"""
        ),
    )


def import_map(path: Path, num_ranks: int, hints: Hints) -> SlotMap:
    """Read an expert map. Layers and devices without numbers are in order; those with count from 0 or 1, or layers have the model's own.

    Raises:
        PlacementError: not such a file, or a broken map.
    """
    source, value = str(path), read_json(path, PlacementError)
    layers = value.get("layer_list") if isinstance(value, dict) else None
    if not isinstance(layers, list) or not layers or not all(isinstance(layer, dict) for layer in layers):
        raise PlacementError(source, "layer_list", "missing, or not a list of layers", _MEND)
    if value.get("moe_layer_count", len(layers)) != len(layers):
        raise PlacementError(source, "layer_list", f"{len(layers)} layers, not moe_layer_count {value['moe_layer_count']!r}", _MEND)
    ordered, numbers = _in_order(layers, "layer_id", f"{source}: layer_list")
    table = matrix(
        [_row(f"{source}: layer_list[{index}]", layer, num_ranks) for index, layer in enumerate(ordered)], source, "device_expert"
    )
    layer_ids = hints.layer_ids
    notes: tuple[str, ...] = ()
    if numbers is not None and numbers[0] not in (0, 1):
        layer_ids = numbers if hints.layer_ids is None else hints.layer_ids
        if numbers != layer_ids:
            raise PlacementError(source, "layer_id", f"{list(numbers)[:5]} are not the model's {list(layer_ids)[:5]}", "check the model")
    elif numbers is not None and numbers[0] == 1 and layer_ids is None:
        notes = ("layers are counted from 1 there",)
    return slot_map(table, hints, layer_ids=layer_ids, num_ranks=num_ranks, source=source, notes=notes)


def _in_order(items: list[dict[str, Any]], field: str, where: str) -> tuple[list[dict[str, Any]], tuple[int, ...] | None]:
    """Items by their numbers, and the numbers; as they are, and None, where none has any.

    Raises:
        PlacementError: some without a number, or numbers that leave one out or come twice.
    """
    numbers = [item.get(field) for item in items]
    if all(number is None for number in numbers):
        return items, None
    if not all(type(number) is int and number >= 0 for number in numbers) or len(set(numbers)) != len(numbers):
        raise PlacementError(where, field, f"{numbers[:5]} are not different numbers", "number all, or none")
    ordered = sorted(items, key=lambda item: int(item[field]))
    found = tuple(int(item[field]) for item in ordered)
    if found[0] in (0, 1) and found != tuple(range(found[0], found[0] + len(found))):
        raise PlacementError(where, field, f"{list(found)[:9]} leave one out", "give all, in the order of MoE layers")
    return ordered, found


def _row(where: str, layer: dict[str, Any], num_ranks: int) -> list[Any]:
    """The experts of all devices of a layer, in their order."""
    devices = layer.get("device_list")
    if not isinstance(devices, list) or len(devices) != num_ranks or not all(isinstance(device, dict) for device in devices):
        found = f"{len(devices)} devices" if isinstance(devices, list) else "no list of devices"
        raise PlacementError(where, "device_list", f"{found}, and not the {num_ranks} of the topology", "check it")
    ordered, numbers = _in_order(devices, "device_id", f"{where}.device_list")
    if numbers is not None and numbers[0] > 1:
        raise PlacementError(where, "device_id", f"{list(numbers)[:5]} don't start at 0 or 1", "number the devices of all nodes")
    row: list[Any] = []
    for number, device in enumerate(ordered):
        held, first = device.get("device_expert"), ordered[0].get("device_expert")
        if not isinstance(held, list) or not isinstance(first, list) or len(held) != len(first):
            raise PlacementError(where, f"device_list[{number}]", f"not device {number} with as many experts as the others", _MEND)
        row += held
    return row
