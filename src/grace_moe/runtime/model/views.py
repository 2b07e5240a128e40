"""Parameters that are read from a checkpoint when they are asked for: what our state dict holds in place of tensors.

Like a safetensors slice, a view tells its shape for nothing and reads when it is indexed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from grace_moe.runtime.model.conversion import Pieces, Source

Shape = tuple[int, ...]


def source_view(source: Source, parameter: str, outline: Any, shape: Shape) -> Any:
    """The parameter whole: the checkpoint's own slice where there is nothing to convert, so that rows are read alone."""
    if source.converter is None:
        return source.only_piece.view
    return _ConvertedView(source, parameter, outline, shape)


class _ConvertedView:
    """A parameter that a conversion makes, of whole tensors: it is read whole, whichever rows are asked for."""

    def __init__(self, source: Source, parameter: str, outline: Any, shape: Shape) -> None:
        self.source, self.parameter, self.outline, self.shape = source, parameter, outline, shape

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def get_dtype(self) -> str:
        return self.source.dtype

    def __getitem__(self, index: Any) -> torch.Tensor:
        tensors = {pattern: [piece.view[...] for piece in pieces] for pattern, pieces in self.source.pieces.items()}
        return self.source.convert(self.outline, tensors)[self.parameter][index]


class ExpertsView:
    """Some experts of a parameter `[experts * rows, ...]`, in any order; only theirs are read."""

    def __init__(
        self, source: Source, parameter: str, outline: Any, *, experts: Sequence[int], rows: int, shapes: Mapping[str, Shape]
    ) -> None:
        """`shapes`: of all parameters that the source becomes, in the order of the conversion, with all experts."""
        self.source, self.parameter, self.outline = source, parameter, outline
        self.experts, self.rows, self.shape = tuple(experts), rows, shapes[parameter]
        sizes = [shape[0] for shape in shapes.values()]
        self.first_pieces = [sum(sizes[:i]) for i in range(len(sizes))]
        """Where in a list of one tensor an expert each parameter begins: they fill the parameters one after the other."""

    def get_shape(self) -> list[int]:
        """With these experts only."""
        return [len(self.experts) * self.rows, *self.shape[1:]]

    def get_dtype(self) -> str:
        """Of the checkpoint's tensors."""
        return self.source.dtype

    def __getitem__(self, index: Any) -> torch.Tensor:
        first, *rest = index if isinstance(index, tuple) else (index,)
        experts = self.experts
        if isinstance(first, slice) and self.rows == 1:
            experts, first = experts[first], slice(None)
        outline = _FewerExperts(self.outline, self.parameter, (len(experts) * self.rows, *self.shape[1:]))
        made = self.source.convert(outline, {pattern: self._of(experts, pattern) for pattern in self.source.pieces})
        return made[self.parameter][(first, *rest)]

    def _of(self, experts: Sequence[int], pattern: str) -> list[torch.Tensor]:
        """The experts' share of the pieces of one pattern."""
        pieces = self.source.pieces[pattern]
        if one_an_expert(self.source.pieces, self.shape):
            return [pieces[first + expert].view[...] for first in self.first_pieces for expert in experts]
        view = pieces[0].view
        return [torch.cat([view[expert * self.rows : (expert + 1) * self.rows] for expert in experts])]


class _FewerExperts:
    """The outline of a model with fewer experts: some conversions ask for the shape that they are to give."""

    def __init__(self, outline: Any, parameter: str, shape: Shape) -> None:
        self.outline, self.parameter, self.shape = outline, parameter, shape
        self.config = outline.config

    def get_parameter(self, name: str) -> torch.Tensor:
        whole: torch.Tensor = self.outline.get_parameter(name)
        return torch.empty(self.shape, device="meta") if name == self.parameter else whole


def one_an_expert(pieces: Pieces, shape: Shape) -> bool:
    """Whether the checkpoint has a tensor for each expert of a parameter of that shape, and not one of all."""
    return any(len(piece.view.get_shape()) < len(shape) for several in pieces.values() for piece in several)
