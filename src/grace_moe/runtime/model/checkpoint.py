"""A model's safetensors files: read lazily, so that a rank reads its own experts only; and checked, from their headers, as a whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeAlias

import torch
from safetensors import safe_open

from grace_moe.errors import ModelError
from grace_moe.runtime.model.parameter_names import expert_tensor, layer_number
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


def check_experts(tensors: Tensors, layers: Container[int], num_experts: int, folder: Path) -> None:
    """Raise ModelError unless every tensor of one expert is there for all experts of its layer, in one shape.

    Ranks that lack the expert in question see it too, and all stop alike.

    Args:
        layers: those of the model; a checkpoint may have more.
    """
    shapes: dict[tuple[str, str], dict[int, list[int]]] = defaultdict(dict)
    for name, view in tensors.items():
        part = expert_tensor(name)
        if part is not None and layer_number(name) in layers:
            shapes[part.stem, part.rest][part.expert] = view.get_shape()
    for (stem, rest), of_expert in shapes.items():
        missing = [f"{stem}.{e}.{rest}" for e in range(num_experts) if e not in of_expert]
        if missing:
            raise ModelError(f"{folder}: weights: missing {listed(missing)}; {_DOWNLOAD}")
        usual = of_expert[0]
        other = [f"{stem}.{e}.{rest} ({shape} for {usual})" for e, shape in of_expert.items() if shape != usual]
        if other:
            raise ModelError(f"{folder}: weights: of another shape {listed(other)}; {_DOWNLOAD}")


def listed(names: list[str]) -> str:
    """The first few of many, and how many more."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def of_slots(tensors: Tensors, local_experts: dict[int, tuple[int, ...]], num_experts: int) -> dict[str, Any]:
    """A state dict that reads lazily: the dense tensors, and this rank's experts renumbered by slot.

    Args:
        local_experts: per layer number, the logical ids in slot order. Layers that the model does not have, such as one that predicts
            further tokens, are passed on as they are: Transformers knows which may be left over.
    """
    weights: dict[str, Any] = {}
    for name, view in tensors.items():
        part = expert_tensor(name)
        stacked = part is None and ".experts." in name and view.get_shape()[:1] == [num_experts]
        experts = local_experts.get(layer_number(name)) if part is not None or stacked else None
        if experts is None:
            weights[name] = view
        elif part is not None:
            weights |= {part.in_slot(slot): view for slot, expert in enumerate(experts) if expert == part.expert}
        else:
            weights[name] = _Rows(view, experts)
    return weights


class _Rows:
    """Some rows of a stacked checkpoint tensor `[experts, ...]`, read when they are asked for, like a safetensors slice."""

    def __init__(self, view: Any, rows: tuple[int, ...]) -> None:
        self.view, self.rows = view, rows

    def get_shape(self) -> list[int]:
        return [len(self.rows), *self.view.get_shape()[1:]]

    def get_dtype(self) -> str:
        return str(self.view.get_dtype())

    def __getitem__(self, index: Any) -> torch.Tensor:
        return torch.cat([self.view[row : row + 1] for row in self.rows])[index]
