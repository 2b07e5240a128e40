"""What a model's folder says of the model without its weights: configuration and tokenizer. No code of the folder is ever run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from grace_moe.errors import ModelError, printable
from grace_moe.runtime.model.reading import read_model_json, reading

_KNOWN = "use a model that Transformers knows"


def load_config(path: str) -> Any:
    """The model's configuration.

    Raises:
        ModelError: no model there, or one that needs code of its own.
    """
    if path.startswith(("/", ".", "~")) and not Path(path).is_dir():
        raise ModelError(f"{path}: no such folder; give a model folder or hub id")
    _refuse_devices(path)
    if Path(path, "config.json").exists():
        read_model_json(Path(path, "config.json"))  # within bounds, which Transformers does not keep
    with reading(path, "config.json", "give a model folder or hub id"):
        try:
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        except ValueError as error:
            if "trust_remote_code" in str(error):
                raise ModelError(f"{path}: config.json: auto_map: the model needs code of its own, which is not run; {_KNOWN}") from error
            raise
    return config


def _refuse_devices(path: str) -> None:
    """Raise ModelError where a folder holds a pipe or a device, which would be read for ever."""
    for entry in Path(path).iterdir() if Path(path).is_dir() else ():
        if entry.exists() and not entry.is_file() and not entry.is_dir():
            raise ModelError(f"{path}: {printable(entry.name)}: not a file; give a folder of files")


def checkpoint_dtype(config: Any) -> str:
    """What the checkpoint says that its weights are, by torch's name; float32 where it says nothing."""
    named = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    return str(named or "float32").removeprefix("torch.")


def load_generation_config(path: str, config: Any) -> GenerationConfig:
    """The model's own `generation_config.json`, which may name more end-of-sequence tokens than its configuration; else made from that."""
    if Path(path).is_dir() and not Path(path, "generation_config.json").exists():
        return GenerationConfig.from_model_config(config)
    with reading(path, "generation_config.json", "download or copy it again"):
        return GenerationConfig.from_pretrained(path)


def load_tokenizer(path: str) -> Any:
    """The model's tokenizer. Raises ModelError where there is none, or one that needs code of its own."""
    with reading(path, "tokenizer", "add the model's own tokenizer files"):
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        except ValueError as error:
            if "trust_remote_code" in str(error):
                raise ModelError(f"{path}: tokenizer: auto_map: it needs code of its own, which is not run; {_KNOWN}") from error
            raise
        if not tokenizer.encode("word"):  # where files are missing, Transformers makes one without a vocabulary
            raise ModelError(f"{path}: tokenizer: it knows no word; add the model's own tokenizer files")
    return tokenizer
