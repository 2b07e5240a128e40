"""What a model's `config.json` says of its experts and layers, as engines number them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grace_moe.errors import InputFileError
from grace_moe.files import read_json

_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
_TOP_K = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_k", "moe_topk", "moe_top_k", "top_k_experts")
_DRAFT = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")
MAX_LAYERS = 10_000


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Layers and experts of a model."""

    num_experts: int
    top_k: int
    num_hidden_layers: int
    """All decoder layers, dense ones too."""
    moe_layer_ids: tuple[int, ...]
    """Those with experts, ascending."""
    num_draft_layers: int = 0
    """Layers that predict further tokens (MTP); engines number them from `num_hidden_layers` on."""
    source: str = "model"


def read_model_shape(path: Path) -> ModelShape:
    """Read `config.json` (or the folder that holds it), in the words of Transformers.

    Raises:
        InputFileError: missing, not JSON, or without the numbers of layers and experts.
    """
    file = path / "config.json" if path.is_dir() else path
    value = read_json(file, InputFileError)
    if not isinstance(value, dict):
        raise InputFileError(str(file), "file", "not an object", "give a model's config.json")
    return shape_of_config(value, str(file))


def shape_of_config(value: dict[str, Any], file: str) -> ModelShape:
    """The shape in a config that has been read. `file` names it in messages. Raises InputFileError."""
    text = value.get("text_config")  # of models that also see or hear
    config: dict[str, Any] = {**value, **text} if isinstance(text, dict) else value
    layers = _integer(file, config, ("num_hidden_layers",), 1, MAX_LAYERS)
    return ModelShape(
        num_experts=_integer(file, config, _EXPERTS, 1, 32_767),
        top_k=_integer(file, config, _TOP_K, 1, 32_767),
        num_hidden_layers=layers,
        moe_layer_ids=tuple(i for i in range(layers) if _has_experts(file, config, i)),
        num_draft_layers=_integer(file, config, _DRAFT, 0, MAX_LAYERS, default=0),
        source=file,
    )


def _has_experts(file: str, config: dict[str, Any], layer: int) -> bool:
    """Whether a layer has experts, by whichever of the rules of Transformers' models the config follows."""

    def number(name: str, low: int, default: int) -> int:
        return _integer(file, config, (name,), low, MAX_LAYERS, default=default)

    types, dense, sparse, frequency = (config.get(name) for name in ("mlp_layer_types", "mlp_only_layers", "moe_layers", "moe_layer_freq"))
    if isinstance(types, list):
        return layer < len(types) and types[layer] == "sparse"
    if isinstance(sparse, list):
        return layer in sparse
    if isinstance(dense, list) and layer in dense:
        return False
    if isinstance(frequency, list):  # a 0 or 1 for each layer
        return layer < len(frequency) and bool(frequency[layer])
    if "moe_layer_interval" in config:
        first, last = number("moe_layer_start_index", 0, 0), config.get("moe_layer_end_index")
        inside = first <= layer and (type(last) is not int or last < 0 or layer <= last)
        return inside and (layer + 1) % number("moe_layer_interval", 1, 1) == 0
    if "expert_layer_period" in config:
        return layer % number("expert_layer_period", 1, 1) == number("expert_layer_offset", 0, 0)
    if layer < number("first_k_dense_replace", 0, 0):
        return False
    if frequency is not None:
        return layer % number("moe_layer_freq", 1, 1) == 0
    return (layer + 1) % number("decoder_sparse_step", 1, 1) == 0


def _integer(file: str, config: dict[str, Any], names: tuple[str, ...], low: int, high: int, *, default: int | None = None) -> int:
    """The first of these fields that is there."""
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if type(value) is not int or not low <= value <= high:
            raise InputFileError(file, name, f"{value!r} is not in {low}..{high}", "give the model's own config.json")
        return value
    if default is not None:
        return default
    raise InputFileError(file, " or ".join(names[:3]), "missing", "is it the config of a Mixture-of-Experts model?")
