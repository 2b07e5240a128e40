"""Every weight accounted for: what Transformers would fill at random, leave over or cut to fit is an error that names it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from grace_moe.errors import ModelError
from grace_moe.runtime.model.checkpoint import Tensors, listed

_MEND = "download or copy the checkpoint again, or give the folder that its config.json belongs to"


def check_loaded(info: Mapping[str, Any], path: str) -> None:
    """Raise ModelError unless each parameter got its tensor, and each tensor its parameter.

    Tied weights, buffers that are not persisted and what a model declares ignorable are not in the lists.

    Args:
        info: what `from_pretrained(..., output_loading_info=True)` tells: `missing_keys`, `unexpected_keys`, `mismatched_keys`.
    """
    _refuse(path, info["missing_keys"], info["unexpected_keys"], {name: (got, want) for name, got, want in info["mismatched_keys"]})


def check_shapes(tensors: Tensors, outline: torch.nn.Module, path: str) -> None:
    """Raise ModelError where a dense tensor has another shape than the model's parameter of that name.

    Before loading: a rank cuts its share from every dense tensor, whatever the shape.

    Args:
        outline: the model on the meta device.
    """
    wanted = outline.state_dict()
    shapes = {name: (tuple(view.get_shape()), tuple(wanted[name].shape)) for name, view in tensors.items() if name in wanted}
    _refuse(path, (), (), {name: pair for name, pair in shapes.items() if pair[0] != pair[1]})


def _refuse(path: str, missing: Iterable[str], unexpected: Iterable[str], shapes: Mapping[str, tuple[Any, Any]]) -> None:
    reshaped = [f"{name} ({list(got)} for {list(want)})" for name, (got, want) in shapes.items()]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    problems = [f"{kind} {listed(sorted(names))}" for kind, names in kinds.items() if names]
    if problems:
        raise ModelError(f"{path}: weights: {'; '.join(problems)}; {_MEND}")
