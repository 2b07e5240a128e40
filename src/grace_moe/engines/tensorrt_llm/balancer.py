"""TensorRT-LLM: `moe_load_balancer.yaml`, out and in.

Layers have the model's own numbers; those that predict further tokens (MTP) follow the decoder's and must be in the file. It is read only
with attention data parallelism, and ignored without a word otherwise (NVIDIA/TensorRT-LLM#18626).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from grace_moe.engines.exported import Exported
from grace_moe.engines.plain_yaml import parse_yaml
from grace_moe.engines.recordings.imported import Hints
from grace_moe.engines.slot_map import SlotMap, filler_row
from grace_moe.engines.slot_tables import MAX_LAYERS, matrix, slot_map
from grace_moe.errors import MismatchError, PlacementError
from grace_moe.files import read_bytes

READ_IN = "main branch, July to September 2026"
"""Where the schema, the loader and their conditions were read: the packages on PyPI, up to 1.4.0rc1, have no source."""
KEYS = ("num_slots", "initial_global_assignments", "layer_updates_per_iter")
"""All that its strict schema takes."""
MAX_YAML_BYTES = 64 * 2**20


def export_yaml(slots: SlotMap, *, extra_layers: Sequence[int] = ()) -> Exported:
    """The YAML of `moe_config.load_balancer`; `layer_updates_per_iter` 0 keeps the plan as it is.

    Args:
        extra_layers: numbers of further layers with experts, such as MTP layers, which get them in order.

    Raises:
        MismatchError: an extra layer that has a plan.
    """
    rows = dict(zip(slots.layer_ids, (row.tolist() for row in slots.physical_to_logical), strict=True))
    for layer in extra_layers:
        if layer in rows:
            raise MismatchError(
                f"{slots.source}: layer {layer} has a plan and is given as an extra layer; name the layers beyond the decoder's"
            )
        rows[layer] = filler_row(slots.num_slots, slots.num_experts)
    lines = [f"num_slots: {slots.num_slots}", "initial_global_assignments:"]
    lines += [f"  {layer}: {rows[layer]}" for layer in sorted(rows)]
    lines.append("layer_updates_per_iter: 0")
    return Exported(
        data=("\n".join(lines) + "\n").encode(),
        launch=(
            "# extra_llm_api_options.yaml\n"
            f"tensor_parallel_size: {slots.num_ranks}\n"
            f"moe_expert_parallel_size: {slots.num_ranks}\n"
            "enable_attention_dp: true\n"
            "moe_config:\n  load_balancer: PLAN\n"
            "# then: trtllm-serve MODEL --extra_llm_api_options extra_llm_api_options.yaml"
        ),
        notes=("TensorRT-LLM takes an expert's replicas in turn, near or far: placement helps it, the nearest replica is not chosen",),
    )


def import_yaml(path: Path, num_ranks: int, hints: Hints) -> SlotMap:
    """Read a load balancer's YAML; of a model whose MoE layers are known, theirs only.

    Raises:
        PlacementError: not such a file, or a broken map.
    """
    source = str(path)
    value = parse_yaml(read_bytes(path, PlacementError, MAX_YAML_BYTES), PlacementError, source)
    if not isinstance(value, dict) or not set(value) <= set(KEYS):
        raise PlacementError(source, "keys", "others than TensorRT-LLM takes", f"it has {', '.join(KEYS)}")
    layers = value.get("initial_global_assignments")
    if not isinstance(layers, dict) or not all(type(i) is int and 0 <= i < MAX_LAYERS for i in layers):
        raise PlacementError(source, "initial_global_assignments", "missing, or not by layer number", "write it again")
    wanted = hints.layer_ids or tuple(sorted(layers))
    if any(layer not in layers for layer in wanted):
        raise PlacementError(source, "initial_global_assignments", f"not all of layers {list(wanted)[:9]}", "check the model")
    table = matrix([layers[layer] for layer in wanted], source, "initial_global_assignments")
    if value.get("num_slots") != table.shape[1]:
        raise PlacementError(source, "num_slots", f"{value.get('num_slots')!r}, and a layer has {table.shape[1]}", "make them equal")
    return slot_map(table, hints, layer_ids=wanted, num_ranks=num_ranks, source=source)
