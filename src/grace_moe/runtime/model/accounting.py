"""Every weight accounted for: what Transformers would fill at random, leave over, cut to fit or misplace is an error that names it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from grace_moe.errors import ModelError
from grace_moe.runtime.model.checkpoint import listed
from grace_moe.runtime.model.source import ModelSource
from grace_moe.runtime.model.views import one_an_expert

_MEND = "download or copy the checkpoint again, or give the folder that its config.json belongs to"
_FURTHER_LAYERS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers", "mtp_num_layers")
"""What configurations call the number of layers that predict further tokens (MTP). No class of Transformers' has them."""
_LAST_NUMBER = re.compile(r"\.(\d+)\.(?!.*\.\d+\.)")


def check_experts(source: ModelSource) -> None:
    """Raise ModelError unless every tensor of one expert is there for all experts of its layer, in one shape.

    Ranks that lack the expert in question see it too, and all stop alike.
    """
    for of in source.conversion.sources:
        if of.parameter not in source.layer_of_parameter or not one_an_expert(of.pieces, source.shapes[of.parameter]):
            continue
        targets = 1 if of.converter is None else len(of.converter.target_patterns)
        wanted = source.shapes[of.parameter][0] * targets
        for pieces in of.pieces.values():
            numbers = {piece.name: _LAST_NUMBER.search(piece.name) for piece in pieces}
            _refuse(source.path, (), [name for name, number in numbers.items() if number is None], {})
            there = {int(number[1]) for number in numbers.values() if number is not None}
            missing = [_LAST_NUMBER.sub(f".{e}.", pieces[0].name) for e in range(wanted) if e not in there]
            _refuse(source.path, missing, (), {})
            usual = pieces[0].view.get_shape()
            other = {piece.name: (piece.view.get_shape(), usual) for piece in pieces if piece.view.get_shape() != usual}
            _refuse(source.path, (), (), other)


def check_shapes(source: ModelSource) -> None:
    """Raise ModelError where a tensor has another shape than the model's parameter of that name.

    Before loading: a rank cuts its share from every dense tensor, whatever the shape.
    """
    made = {name: (shape, source.shapes[name]) for shapes in source.made for name, shape in shapes.items() if name in source.shapes}
    _refuse(source.path, (), (), {name: pair for name, pair in made.items() if pair[0] != pair[1]})


def check_loaded(info: Mapping[str, Any], source: ModelSource) -> None:
    """Raise ModelError unless each parameter got its tensor, and each tensor its parameter.

    Tied weights, buffers that are not persisted and what a model declares ignorable are not in the lists. Layers that predict further
    tokens, which the configuration tells the number of, are left over rightly.

    Args:
        info: what `from_pretrained(..., output_loading_info=True)` tells: `missing_keys`, `unexpected_keys`, `mismatched_keys`.
    """
    further = _further_layers(source)
    unexpected = [name for name in info["unexpected_keys"] if not any(layer in f".{name}" for layer in further)]
    shapes = {name: (got, want) for name, got, want in info["mismatched_keys"]}
    _refuse(source.path, info["missing_keys"], unexpected, shapes)


def _further_layers(source: ModelSource) -> list[str]:
    """What the names of the layers have in them that predict further tokens."""
    text = source.config.get_text_config()
    number = max(int(getattr(text, name, None) or 0) for name in _FURTHER_LAYERS)
    layers = int(getattr(text, "num_hidden_layers", None) or 0)
    return [".mtp."] + [f".layers.{layers + i}." for i in range(number)]


def check_dense_weights(model: Any, weights: Mapping[str, Any], source: ModelSource) -> None:
    """Raise ModelError unless every dense weight on this rank equals the same rows of the checkpoint, to the last bit.

    Reads this rank's share of them a second time, which the operating system has at hand.
    """
    state = model.state_dict()
    wrong = []
    for name, view in weights.items():
        loaded = state.get(name)
        if loaded is None or name in source.layer_of_parameter:
            continue
        rows, local = _share(loaded)
        expected = view[rows].to(device=local.device, dtype=local.dtype)
        if not torch.equal(local, expected):
            wrong.append(name)
    if wrong:
        raise ModelError(f"{source.path}: weights: not as in the checkpoint after loading: {listed(wrong)}; report this architecture")


def _share(loaded: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """Which part of a parameter this rank holds, as an index, and the part itself."""
    if not isinstance(loaded, DTensor):
        return ..., loaded
    shape, offset = compute_local_shape_and_global_offset(loaded.shape, loaded.device_mesh, loaded.placements)
    rows = tuple(slice(first, first + size) for first, size in zip(offset, shape, strict=True))
    return rows or ..., loaded.to_local()


def _refuse(path: str, missing: Iterable[str], unexpected: Iterable[str], shapes: Mapping[str, tuple[Any, Any]]) -> None:
    reshaped = [f"{name} ({list(got)} for {list(want)})" for name, (got, want) in shapes.items()]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    problems = [f"{kind} {listed(sorted(names))}" for kind, names in kinds.items() if names]
    if problems:
        raise ModelError(f"{path}: weights: {'; '.join(problems)}; {_MEND}")
