"""What an importer is told of the model, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass

from grace_moe.engines.models.model_config import ModelShape
from grace_moe.errors import UsageError
from grace_moe.trace import LoadProfile, RoutingTrace


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What the user knows of the model that a dump does not say; None = unknown."""

    num_experts: int | None = None
    top_k: int | None = None
    num_hidden_layers: int | None = None
    layer_ids: tuple[int, ...] | None = None
    """Decoder layers that have experts."""
    skip_tokens: int = 0
    """Tokens at the beginning of the dump that are not to be imported."""
    model: str = ""
    dataset: str = ""

    @classmethod
    def of(cls, shape: ModelShape, *, model: str = "", dataset: str = "") -> Hints:
        """All that a model's config says."""
        return cls(
            num_experts=shape.num_experts,
            top_k=shape.top_k,
            num_hidden_layers=shape.num_hidden_layers,
            layer_ids=shape.moe_layer_ids,
            model=model,
            dataset=dataset,
        )

    def need(self, name: str, why: str) -> int:
        """One of the numbers. Raises UsageError, with why it is needed, where it is unknown."""
        value = getattr(self, name)
        if value is None:
            raise UsageError(f"{why}; give --model with the model's config.json, or --{name.replace('_', '-')}")
        return int(value)


@dataclass(frozen=True, kw_only=True)
class Imported:
    """Tokens or loads from an engine, and what its user should know."""

    trace: RoutingTrace | LoadProfile
    notes: tuple[str, ...] = ()
