"""Which parameters of a model a checkpoint's tensors become: by Transformers' own renaming, with whole tensors.

Transformers' loader cuts each tensor to a rank's rows before it converts several of them into one parameter (or one into several). For a
concatenation along the rows that gives each rank other rows than its own. Here a conversion sees whole tensors, and a rank's rows are cut
from its result, which is what one process has.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, dot_natural_key, rename_source_key

from grace_moe.runtime.model.checkpoint import Tensors


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One tensor of the checkpoint."""

    name: str
    view: Any


Pieces = Mapping[str, Sequence[Piece]]
"""By the pattern of the conversion that takes them, each in the order of its names."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The tensors that become one parameter, or several parameters by one conversion."""

    parameter: str
    """The first of them."""
    pieces: Pieces
    converter: Any = None
    """Transformers' `WeightConverter`; None: the one tensor is the parameter, under another name."""

    @property
    def only_piece(self) -> Piece:
        """Of a source without a conversion."""
        ((piece,),) = self.pieces.values()
        return piece

    @property
    def dtype(self) -> str:
        """Of the tensors, as safetensors names it."""
        return str(next(iter(self.pieces.values()))[0].view.get_dtype())

    def convert(self, outline: Any, tensors: Mapping[str, list[torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Parameter -> its value, of tensors in place of the pieces."""
        if self.converter is None:
            ((tensor,),) = tensors.values()
            return {self.parameter: tensor}
        converter = deepcopy(self.converter)
        for pattern, several in tensors.items():
            for tensor in several:
                converter.add_tensor(self.parameter, pattern, pattern, tensor)
        made = converter.convert(self.parameter, model=outline, config=outline.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    def shapes(self, outline: Any) -> dict[str, tuple[int, ...]]:
        """Parameter -> the shape that the pieces make; nothing is read. Raises whatever a conversion does of shapes that don't fit."""
        empty = {pattern: [torch.empty(p.view.get_shape(), device="meta") for p in pieces] for pattern, pieces in self.pieces.items()}
        return {name: tuple(value.shape) for name, value in self.convert(outline, empty).items()}


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A checkpoint's tensors, sorted by what they become."""

    sources: tuple[Source, ...]
    left_over: Tensors
    """Those that become nothing: Transformers knows which may be left over."""
    used: tuple[Any, ...]
    """Transformers' renamings and conversions that matched a name: what must be undone to write the checkpoint again."""


def conversion_of(tensors: Tensors, outline: Any) -> Conversion:
    """Sort the tensors of a checkpoint as `from_pretrained` does.

    Args:
        outline: the model on the meta device.
    """
    transforms = get_model_conversion_mapping(outline)
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    renamings = [t for t in transforms if not isinstance(t, WeightConverter)]
    converter_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    parameters = outline.state_dict()
    rename = _renamer(renamings, converters, outline.base_model_prefix, parameters)
    pieces: dict[str, dict[str, list[Piece]]] = defaultdict(lambda: defaultdict(list))
    left_over: Tensors = {}
    for name in sorted(tensors, key=dot_natural_key):
        parameter, pattern = rename(name)
        if parameter in parameters:
            pieces[parameter][pattern or ""].append(Piece(name=name, view=tensors[name]))
        else:
            left_over[name] = tensors[name]
    sources = [
        Source(parameter=parameter, pieces=dict(of), converter=converter_of[min(of)] if "" not in of else None)
        for parameter, of in pieces.items()
    ]
    return Conversion(sources=tuple(sources), left_over=left_over, used=tuple(t for t in transforms if t.was_used()))


def _renamer(
    renamings: list[Any], converters: list[Any], prefix: str, parameters: Mapping[str, Any]
) -> Callable[[str], tuple[str, str | None]]:
    """The parameter that a tensor of this name goes to, and the pattern of the conversion that takes it there."""

    def rename(name: str) -> tuple[str, str | None]:
        parameter, pattern = rename_source_key(name, renamings, converters, prefix, parameters)
        if parameter not in parameters and name in parameters:
            return name, None
        return parameter, pattern

    return rename
