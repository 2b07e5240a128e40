"""The experts of a rank's own slots, as the parameters of its model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers.distributed.expert_parallel import ExpertParallelLayer

from grace_moe.errors import MismatchError, ModelError
from grace_moe.runtime.dispatch.route import LayerRoute
from grace_moe.runtime.model.load_under_way import load_under_way
from grace_moe.runtime.model.parameter_names import layer_number
from grace_moe.runtime.model.session import ExpertParallelSession

_SESSION = "_grace_session"
_LAYER = "_grace_layer_id"


def assign_layer(experts: torch.nn.Module, session: ExpertParallelSession, layer_id: int) -> None:
    """Make the module the experts of one layer of the session."""
    setattr(experts, _SESSION, session)
    setattr(experts, _LAYER, layer_id)


def session_of(experts: torch.nn.Module) -> ExpertParallelSession:
    """The session that the module, or one inside of it, was assigned to. Raises ModelError where none ever was."""
    for module in experts.modules():
        session: ExpertParallelSession | None = getattr(module, _SESSION, None)
        if session is not None:
            return session
    raise ModelError(
        'ep_implementation="grace" needs ep_plan to name "grace_experts": load with grace_moe.runtime.model.loading.load_model'
    )


def layer_of(experts: torch.nn.Module) -> int:
    """The layer that the module, or one inside of it, was assigned to."""
    layer_id: int = next(getattr(module, _LAYER) for module in experts.modules() if hasattr(module, _LAYER))
    return layer_id


def route_of(experts: torch.nn.Module) -> LayerRoute:
    """The route of that layer."""
    return session_of(experts).routes[layer_of(experts)]


def placed_experts(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, LayerRoute]]:
    """Each module of a loaded model that holds experts' parameters, with its route."""
    for module in model.modules():
        if hasattr(module, _SESSION):
            yield module, route_of(module)


def by_slot(parameter: torch.Tensor, route: LayerRoute) -> torch.Tensor:
    """`[slots, ...]` the same memory of a placed parameter (or its gradient), one part an expert."""
    slots: torch.Tensor = parameter.unflatten(0, (route.num_slots, -1))
    return slots


class PlacedExperts(ExpertParallelLayer):
    """Parameter style: a rank keeps the experts of its own slots, in slot order.

    A rank without experts in a layer keeps one spare slot that no token is sent to (`LayerRoute.num_slots`).
    """

    def validate_param(self, module: torch.nn.Module, param: str, mesh: Any, parameter_name: str | None = None) -> None:
        """Note which layer the module is: the seam names it here and nowhere else."""
        session = load_under_way().session
        assert session is not None, "only a placed model's plan names this style"
        layer_id = layer_number(parameter_name or "")
        if layer_id not in session.routes:
            raise MismatchError(f"placement: layers: layer {layer_id} of the model is not placed; plan on a trace of this model")
        session.experts_of_text.setdefault(layer_id, id(module))
        assign_layer(module, session, layer_id)

    def shard_param(self, module: torch.nn.Module, param: str, mesh: Any) -> None:
        """Shrink one parameter `[experts * rows, ...]` to this rank's slots."""
        full = module._parameters.get(param)
        if full is None:
            return
        slots = route_of(module).num_slots
        local = torch.empty((slots * load_under_way().rows, *full.shape[1:]), dtype=full.dtype, device=full.device)
        module._parameters[param] = torch.nn.Parameter(local, requires_grad=full.requires_grad)
        module.num_experts = slots  # type: ignore[assignment]
