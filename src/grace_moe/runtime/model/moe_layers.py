"""Where a model's routed experts are: by Transformers' expert-parallel plan of it, else by an adapter of ours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers.distributed.parallel_utils import replace_layer_number_by_wildcard

from grace_moe.errors import ModelError
from grace_moe.runtime.model.adapters import ADAPTERS, Adapter
from grace_moe.runtime.model.parameter_names import layer_number

DISPATCHED, EXPERTS = "ep_dispatch_experts", "grouped_gemm"
"""What Transformers' plans call a module of experts, and each of its parameters that has one part an expert."""


@dataclass(frozen=True, kw_only=True)
class ExpertsOfLayer:
    """The routed experts of one MoE layer."""

    layer_id: int
    module: Any
    """The experts, which are called with hidden states, ids and weights; or the MoE block, where there is an adapter."""
    parameters: tuple[str, ...]
    """Full names of those that have one part an expert."""
    num_experts: int
    rows: int
    """Rows of a parameter that belong to one expert."""
    adapter: Adapter | None


def experts_of(model: Any) -> list[ExpertsOfLayer]:
    """The routed experts of each MoE layer, and of a second kind of tokens (an image's) where a layer has experts for them apart: those
    come after the first of their layer."""
    plan = model.ep_plan or {}
    if DISPATCHED not in plan.values():
        return list(_adapted(model))
    found = []
    for name, module in model.named_modules():
        if plan.get(replace_layer_number_by_wildcard(name)) == DISPATCHED:
            own = {f"{name}.{parameter}": value for parameter, value in module.named_parameters()}
            placed = {full: value for full, value in own.items() if plan.get(replace_layer_number_by_wildcard(full)) == EXPERTS}
            num_experts = next(iter(placed.values())).shape[0]
            found.append(
                ExpertsOfLayer(
                    layer_id=layer_number(name), module=module, parameters=tuple(placed), num_experts=num_experts, rows=1, adapter=None
                )
            )
    return found


def _adapted(model: torch.nn.Module) -> Iterator[ExpertsOfLayer]:
    for name, module in model.named_modules():
        adapter = ADAPTERS.get(type(module).__name__)
        if adapter is not None:
            yield ExpertsOfLayer(
                layer_id=layer_number(name),
                module=module,
                parameters=tuple(f"{name}.{parameter}" for parameter in adapter.parameters),
                num_experts=adapter.num_experts(module),
                rows=adapter.rows(module),
                adapter=adapter,
            )


def experts_by_layer(model: Any, path: str = "model") -> dict[int, ExpertsOfLayer]:
    """The experts that tokens of text are routed to, by the layer's own number.

    Args:
        path: what errors name.

    Raises:
        ModelError: the model has none, or layers of different numbers of them.
    """
    layers: dict[int, ExpertsOfLayer] = {}
    for experts in experts_of(model):
        layers.setdefault(experts.layer_id, experts)
    kind = model.config.model_type
    if not layers:
        raise ModelError(f"{path}: config.json: {kind!r} has no experts that can be placed; give a Mixture-of-Experts model")
    if len({experts.num_experts for experts in layers.values()}) > 1:
        raise ModelError(f"{path}: config.json: {kind!r}: layers of different numbers of experts are not supported")
    return layers


def placed_plan(model: Any, style: str, block_style: str, whole_style: str) -> dict[str, str]:
    """An `ep_plan` that has our styles: `style` for the experts' parameters, `block_style` for the blocks of an adapter, and `whole_style`
    for all else that the model's own plan would shard."""
    own = {name: given if given == DISPATCHED else whole_style for name, given in (model.ep_plan or {}).items()}
    plan: dict[str, str] = {}
    for experts in experts_of(model):
        plan |= {replace_layer_number_by_wildcard(name): style for name in experts.parameters}
        if experts.adapter is not None:
            block = replace_layer_number_by_wildcard(experts.parameters[0]).removesuffix(f".{experts.adapter.parameters[0]}")
            plan |= {block: block_style} | {f"{block}.{name}": DISPATCHED for name in experts.adapter.experts}
    return own | plan
