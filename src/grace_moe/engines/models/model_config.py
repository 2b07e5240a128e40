"""What a model's `config.json` says of its experts and layers, as engines number them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grace_moe.engines.models.layer_rules import SWITCHES, depth, moe_layers
from grace_moe.errors import InputFileError
from grace_moe.files import MAX_EXPERTS, MAX_LAYERS, read_json

_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts", "num_routed_experts", "n_experts")
_TOP_K = (
    *("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_k", "moe_topk", "moe_top_k", "top_k_experts"),
    *("num_selected_experts", "router_topk"),
)
_DRAFT = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")
_LAYERS = ("num_hidden_layers", "n_layers", "num_layers", "n_layer")
_TEXT = ("thinker_config", "text_config", "language_config", "llm_config")
"""Where the text model's own config is, in models that also see or hear; one may be in another."""
_PART = "ffn_config"
"""Where DBRX has its experts."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Layers and experts of a model."""

    num_experts: int
    top_k: int
    num_hidden_layers: int
    """All decoder layers, dense ones too."""
    moe_layer_ids: tuple[int, ...] | None
    """Those with experts, ascending; None = the config doesn't tell."""
    num_draft_layers: int = 0
    """Layers that predict further tokens (MTP); engines number them from `num_hidden_layers` on."""
    source: str = "model"


def read_model_shape(path: Path) -> ModelShape:
    """Read `config.json` (or the folder that holds it), in the words of Transformers.

    Raises:
        InputFileError: missing, not JSON, or without the numbers of layers and experts.
    """
    return shape_of_config(*read_config(path))


def read_config(path: Path) -> tuple[dict[str, Any], str]:
    """The object in `config.json` (or the folder that holds it), and the file's name. Raises InputFileError: missing or no object."""
    file = path / "config.json" if path.is_dir() else path
    value = read_json(file, InputFileError, finite=False)  # Mamba's configs have an Infinity
    if not isinstance(value, dict):
        raise InputFileError(str(file), "file", "not an object", "give a model's config.json")
    return value, str(file)


def config_number(file: str, value: dict[str, Any], names: tuple[str, ...], low: int, high: int) -> int:
    """The first of these fields of the text model that is there. Raises InputFileError: none is, or it is out of range."""
    return _integer(file, _text_model(value), names, low, high)


def shape_of_config(value: dict[str, Any], file: str) -> ModelShape:
    """The shape in a config that has been read. `file` names it in messages. Raises InputFileError."""
    config = _text_model(value)
    if config.get("is_encoder_decoder") is True:
        raise InputFileError(file, "is_encoder_decoder", "an encoder and a decoder with layers of the same numbers", "give a decoder model")
    if any(config.get(switch) is False for switch in SWITCHES):
        raise InputFileError(file, " or ".join(SWITCHES), "false", "is it the config of a Mixture-of-Experts model?")
    layers = depth(config) or _integer(file, config, _layer_fields(config), 1, MAX_LAYERS)
    return ModelShape(
        num_experts=_integer(file, config, _EXPERTS, 1, MAX_EXPERTS),
        top_k=_integer(file, config, _TOP_K, 1, MAX_EXPERTS),
        num_hidden_layers=layers,
        moe_layer_ids=moe_layers(config, layers, file),
        num_draft_layers=_integer(file, config, _DRAFT, 0, MAX_LAYERS, default=0),
        source=file,
    )


def _text_model(value: dict[str, Any]) -> dict[str, Any]:
    """The fields of the text model, over those of the whole."""
    config = dict(value)
    for field in (*_TEXT, _PART):
        part = config.get(field)
        if isinstance(part, dict):
            config |= {name: item for name, item in part.items() if field != _PART or name != "model_type"}
    return config


def _layer_fields(config: dict[str, Any]) -> tuple[str, ...]:
    """LongCat's `num_hidden_layers` counts its attentions, two a layer."""
    return ("num_layers", *_LAYERS) if str(config.get("model_type")).startswith("longcat_flash") else _LAYERS


def _integer(file: str, config: dict[str, Any], names: tuple[str, ...], low: int, high: int, *, default: int | None = None) -> int:
    """The first of these fields that is there; of a list with one number for each layer, that number."""
    for name in names:
        value = config.get(name)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if value is None:
            continue
        if type(value) is not int or not low <= value <= high:
            raise InputFileError(file, name, f"{value!r} is not in {low}..{high}", "give the model's own config.json")
        return value
    if default is not None:
        return default
    raise InputFileError(file, " or ".join(names[:3]), "missing", "is it the config of a Mixture-of-Experts model?")
