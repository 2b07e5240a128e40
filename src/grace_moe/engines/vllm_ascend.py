"""vllm-ascend: its expert map, of MoE layers and devices (`expert_map_path`, the legacy model runner)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grace_moe.engines.exported import Exported
from grace_moe.engines.imported import Hints
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
    """Read an expert map. Raises PlacementError: not such a file, or a broken map."""
    source, value = str(path), read_json(path, PlacementError)
    layers = value.get("layer_list") if isinstance(value, dict) else None
    if not isinstance(layers, list) or not layers or value.get("moe_layer_count") != len(layers):
        raise PlacementError(source, "layer_list", "missing, or not moe_layer_count layers", _MEND)
    rows = [_row(source, index, layer, num_ranks) for index, layer in enumerate(layers)]
    table = matrix(rows, source, "device_expert")
    return slot_map(table, layer_ids=hints.layer_ids, num_experts=hints.num_experts, num_ranks=num_ranks, source=source)


def _row(source: str, index: int, layer: Any, num_ranks: int) -> list[Any]:
    """The experts of all devices of a layer, in their order."""
    where = f"layer_list[{index}]"
    devices = layer.get("device_list") if isinstance(layer, dict) else None
    if not isinstance(devices, list) or len(devices) != num_ranks or layer.get("layer_id") != index:
        raise PlacementError(source, where, f"not layer {index} with {num_ranks} devices", "check the topology and the order of the layers")
    row: list[Any] = []
    for number, device in enumerate(devices):
        experts = device.get("device_expert") if isinstance(device, dict) else None
        if (
            not isinstance(experts, list)
            or device.get("device_id") != number
            or len(experts) * num_ranks != len(devices[0]["device_expert"]) * num_ranks
        ):
            raise PlacementError(source, f"{where}.device_list[{number}]", f"not device {number} with as many experts as the others", _MEND)
        row += experts
    return row
