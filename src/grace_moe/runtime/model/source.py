"""A model before it is loaded: its folder checked as far as that goes without reading weights, and its parameters, to be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from grace_moe.errors import ModelError
from grace_moe.runtime.model.conversion import Conversion, Source, conversion_of
from grace_moe.runtime.model.moe_layers import ExpertsOfLayer, experts_of
from grace_moe.runtime.model.views import ExpertsView, Shape, source_view


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model's folder, and what its checkpoint's tensors become."""

    path: str
    folder: Path
    config: Any
    model_class: Any
    outline: Any
    """The model on the meta device."""
    layers: dict[int, ExpertsOfLayer]
    """The MoE layers, by their own number."""
    conversion: Conversion
    has_own_tensors: bool
    """Whether the tensors are as they stand in the folder, and not dequantised."""

    @property
    def num_experts(self) -> int:
        """Of each MoE layer."""
        return next(iter(self.layers.values())).num_experts

    @property
    def rows(self) -> int:
        """Rows of an experts' parameter that belong to one expert."""
        return next(iter(self.layers.values())).rows

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Of every parameter and buffer of the whole model."""
        return {name: tuple(value.shape) for name, value in self.outline.state_dict().items()}

    @cached_property
    def layer_of_parameter(self) -> dict[str, int]:
        """The MoE layer of each parameter that has a part for each expert."""
        return {name: experts.layer_id for experts in experts_of(self.outline) for name in experts.parameters}

    @cached_property
    def made(self) -> list[dict[str, Shape]]:
        """Of each source of the conversion, in turn: the parameters that it becomes, and the shapes that the checkpoint gives them."""
        return [source.shapes(self.outline) for source in self.conversion.sources]


def weights_of(source: ModelSource, local_experts: Mapping[int, Sequence[int]] | None = None) -> dict[str, Any]:
    """A state dict of the model's own names that is read when it is used, and what is left over of the checkpoint.

    Args:
        local_experts: per MoE layer, the experts of this rank in the order of its slots; None: all of them.

    Raises:
        ModelError: Transformers would take one of the names for another.
    """
    weights: dict[str, Any] = {}
    for of, shapes in zip(source.conversion.sources, source.made, strict=True):
        for parameter in shapes:
            layer_id = source.layer_of_parameter.get(parameter)
            if layer_id is None:
                weights[parameter] = source_view(of, parameter, source.outline, source.shapes[parameter])
            else:
                experts = local_experts[layer_id] if local_experts is not None else range(source.num_experts)
                whole = {name: source.shapes[name] for name in shapes}
                weights[parameter] = ExpertsView(of, parameter, source.outline, experts=experts, rows=source.rows, shapes=whole)
    again = conversion_of(weights, source.outline)
    moved = [*again.left_over, *(of.parameter for of in again.sources if not _stays(of))]
    if moved:
        raise ModelError(f"{source.path}: weights: Transformers would convert {moved[0]} once more; this architecture is not supported")
    return weights | source.conversion.left_over


def _stays(of: Source) -> bool:
    """Whether a parameter of this name is loaded as it is: not renamed, and not converted but for a transposition where the shape asks."""
    names = [piece.name for pieces in of.pieces.values() for piece in pieces]
    converts = [] if of.converter is None else [op for op in of.converter.operations if not getattr(op, "check_dims", False)]
    return names == [of.parameter] and not converts
