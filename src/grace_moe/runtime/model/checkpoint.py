"""A model's safetensors files: read lazily, so that a rank reads its own experts only; and checked, from their headers, as a whole."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeAlias

from safetensors import safe_open

from grace_moe.errors import ModelError
from grace_moe.runtime.model.reading import read_model_json, reading

Tensors: TypeAlias = dict[str, Any]
"""Name -> safetensors slice: shape and dtype at hand, data read when it is indexed."""
_DOWNLOAD = "download or copy it again"


def local_folder(path: str) -> Path:
    """The model's folder; a hub id is downloaded (weights and configuration) where there is a hub.

    Raises:
        ModelError: neither a folder nor a hub id that can be had.
    """
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download  # a client of the network, which a local folder never needs

    try:
        return Path(snapshot_download(path, allow_patterns=["*.safetensors", "*.json"]))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: neither a folder nor a model of the hub ({str(error).splitlines()[0]}); check the name") from error


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files of a local model folder, one or sharded.

    Raises:
        ModelError: none there, a damaged index, or one that names a file outside the folder.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        with reading(str(index), "weight_map", _DOWNLOAD):
            names = sorted({_text(name) for name in read_model_json(index)["weight_map"].values()})
        for name in names:
            _refuse_outside(index, name)
        return [folder / name for name in names]
    if not (folder / "model.safetensors").exists():
        raise ModelError(f"{folder}: model.safetensors: no such file; give a local folder with a safetensors checkpoint")
    return [folder / "model.safetensors"]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a file name")
    return value


def _refuse_outside(index: Path, name: str) -> None:
    """By the name alone: files of a hub's cache are links to elsewhere, and rightly so."""
    parts = [*PurePosixPath(name).parts, *PureWindowsPath(name).parts]
    if name.startswith(("/", "\\")) or ".." in parts or PureWindowsPath(name).drive or not name:
        raise ModelError(f"{index}: weight_map: {name[:200]!r} is outside of the model's folder; a checkpoint's files lie beside its index")


def read_tensors(folder: Path) -> Tensors:
    """Every tensor of the checkpoint, not read yet.

    Raises:
        ModelError: no safetensors there, or a damaged file.
    """
    tensors: Tensors = {}
    for file in checkpoint_files(folder):
        if not file.is_file():
            raise ModelError(f"{file}: weights: no such file; {_DOWNLOAD}")
        with reading(str(file), "weights", _DOWNLOAD):
            handle = safe_open(file, framework="pt")
            tensors |= {name: handle.get_slice(name) for name in list(handle.keys())}
    return tensors


def listed(names: list[str]) -> str:
    """The first few of many, and how many more."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
