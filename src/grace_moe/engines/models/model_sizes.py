"""What a model's `config.json` says of the sizes that `cost` counts by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grace_moe.cost.sizes import ModelSizes
from grace_moe.engines.models.model_config import ModelShape, config_number, read_config, shape_of_config

_HIDDEN = ("hidden_size", "d_model", "n_embd", "dim", "model_dim")
_EXPERT = (
    *("moe_intermediate_size", "expert_ffn_hidden_size", "moe_ffn_hidden_size", "expert_intermediate_size", "moe_hidden_size"),
    *("ffn_hidden_size", "intermediate_size", "ffn_dim", "n_inner"),
)
_MOST = 10**6
_BYTES = {"float32": 4.0, "fp32": 4.0, "float8": 1.0, "fp8": 1.0, "int8": 1.0, "mxfp4": 0.53125, "nvfp4": 0.5625, "fp4": 0.5625}
"""Of a weight, by how its type's name begins; with scales, where one is for so few weights that it counts."""


def read_model_sizes(path: Path) -> ModelSizes:
    """Read `config.json` (or the folder that holds it).

    Raises:
        InputFileError: missing, not JSON, or without a size.
    """
    value, file = read_config(path)
    shape = shape_of_config(value, file)
    return ModelSizes(
        num_experts=shape.num_experts,
        top_k=shape.top_k,
        hidden_size=config_number(file, value, _HIDDEN, 1, _MOST),
        expert_size=config_number(file, value, _EXPERT, 1, _MOST),
        weight_bytes=_weight_bytes(value),
        moe_layers=_moe_layers(shape),
        source=(path if path.is_dir() else path.parent).resolve().name or file,
    )


def _moe_layers(shape: ModelShape) -> int:
    return shape.num_hidden_layers if shape.moe_layer_ids is None else len(shape.moe_layer_ids)


def _weight_bytes(value: dict[str, Any]) -> float:
    """By the quantisation, else by the type of weights; 2 where neither is told."""
    quantised = value.get("quantization_config")
    if isinstance(quantised, dict):
        bits = _bits(quantised)
        method = str(quantised.get("quant_method", quantised.get("quant_algo", ""))).lower()
        return bits / 8 if bits is not None else _of_name(method, 1.0)
    return _of_name(str(value.get("dtype", value.get("torch_dtype", ""))).lower().removeprefix("torch."), 2.0)


def _bits(quantised: dict[str, Any]) -> float | None:
    """Bits of a weight in AWQ's, GPTQ's and compressed-tensors' words."""
    groups = quantised.get("config_groups")
    parts = [quantised, *(groups.values() if isinstance(groups, dict) else ())]
    for part in parts:
        weights = part.get("weights") if isinstance(part, dict) else None
        for where, name in ((part, "bits"), (weights, "num_bits")):
            bits = where.get(name) if isinstance(where, dict) else None
            if type(bits) is int and 1 <= bits <= 32:
                return float(bits)
    return None


def _of_name(name: str, default: float) -> float:
    return next((size for start, size in _BYTES.items() if name.startswith(start)), default)
