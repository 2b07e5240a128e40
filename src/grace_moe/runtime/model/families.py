"""Which class of Transformers a configuration is of, and what of it holds the experts."""

from __future__ import annotations

from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, GenerationMixin

from grace_moe.errors import ModelError


def model_class(config: Any, path: str) -> tuple[Any, Any]:
    """The class that loads a model, and the part of its configuration that the class takes.

    A class that takes all of a composite configuration comes before one of its text part alone: then every weight of the checkpoint has its
    parameter. Of a model of several models, such as Qwen3-Omni, the first part that is a language model is taken.

    Raises:
        ModelError: Transformers has no causal or image-text class for it, or one that does not make a token after the other.
    """
    cls, part = _mapped(config, path)
    if not issubclass(cls, GenerationMixin):
        raise ModelError(f"{path}: config.json: {config.model_type!r} is not generated token by token by Transformers' {cls.__name__}")
    return cls, part


def _mapped(config: Any, path: str) -> tuple[Any, Any]:
    for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING):
        if type(config) in mapping and mapping[type(config)].config_class is type(config):
            return mapping[type(config)], config
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config.get_text_config()
    for name in config.sub_configs:
        part = getattr(config, name)
        if type(part) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            return _mapped(part, path)
    raise ModelError(f"{path}: config.json: {config.model_type!r} is neither a causal nor an image-text model of Transformers")
