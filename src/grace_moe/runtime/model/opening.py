"""Opening a model's folder: all that can be refused before weights are read."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch

from grace_moe.runtime.model.accounting import check_experts, check_shapes
from grace_moe.runtime.model.checkpoint import local_folder, read_tensors
from grace_moe.runtime.model.conversion import conversion_of
from grace_moe.runtime.model.description import load_config
from grace_moe.runtime.model.families import model_class
from grace_moe.runtime.model.moe_layers import experts_by_layer
from grace_moe.runtime.model.quantised import dequantised
from grace_moe.runtime.model.reading import reading
from grace_moe.runtime.model.source import ModelSource

_DOWNLOAD = "download or copy them again"


def open_model(path: str) -> ModelSource:
    """Configuration and headers, on every rank alike, before anything is loaded.

    Raises:
        ModelError: no model there, not a Mixture-of-Experts, one that Transformers or we can't take, or a checkpoint that is not whole.
    """
    whole_config = load_config(path)
    cls, config = model_class(whole_config, path)
    config = _without_quantization(config)
    with reading(path, "config.json", "give the folder of a model that Transformers knows"), torch.device("meta"):
        outline = cls(config)
    layers = experts_by_layer(outline, path)
    folder = local_folder(path)
    in_folder = read_tensors(folder)
    tensors = dequantised(in_folder, whole_config, path)
    with reading(path, "weights", _DOWNLOAD):
        conversion = conversion_of(tensors, outline)
    source = ModelSource(
        path=path,
        folder=folder,
        config=config,
        model_class=cls,
        outline=outline,
        layers=layers,
        conversion=conversion,
        has_own_tensors=tensors is in_folder,
    )
    check_experts(source)
    with reading(path, "weights", _DOWNLOAD):
        check_shapes(source)
    return source


def _without_quantization(config: Any) -> Any:
    """What is loaded is dequantised: Transformers must not look for packed weights."""
    if getattr(config, "quantization_config", None) is None:
        return config
    config = copy(config)
    del config.quantization_config
    return config
