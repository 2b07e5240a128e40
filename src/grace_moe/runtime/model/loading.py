"""Loading a model so that each rank holds the dense weights and its own experts only, and no weight that its checkpoint does not give."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers.distributed import DistributedConfig
from transformers.utils import logging as transformers_logging

from grace_moe.errors import MismatchError, ModelError, UsageError
from grace_moe.placement import Placement
from grace_moe.runtime.dispatch import AutoDispatcher, Dispatcher, FlatDispatcher, HierarchicalDispatcher
from grace_moe.runtime.dispatch.collectives import TrafficMeter
from grace_moe.runtime.dispatch.rank_groups import RankGroups, rank_device
from grace_moe.runtime.dispatch.route import LayerRoute, layer_routes
from grace_moe.runtime.model.accounting import check_dense_weights, check_loaded
from grace_moe.runtime.model.description import load_generation_config
from grace_moe.runtime.model.expert_parallel import GRACE, GRACE_BLOCK, GRACE_EXPERTS, VANILLA, WHOLE, register_names
from grace_moe.runtime.model.load_under_way import loading_for
from grace_moe.runtime.model.moe_layers import DISPATCHED, EXPERTS, experts_by_layer, placed_plan
from grace_moe.runtime.model.opening import open_model
from grace_moe.runtime.model.reading import reading
from grace_moe.runtime.model.session import ExpertParallelSession
from grace_moe.runtime.model.source import ModelSource, weights_of

MAX_SLOT_CODE = 32_767
"""A dispatched row names the device and slot on the far node in 16 bits."""
_DISPATCHERS: dict[str, Callable[..., Dispatcher]] = {
    "flat": FlatDispatcher,
    "hierarchical": HierarchicalDispatcher,
    "auto": AutoDispatcher,
}
_DOWNLOAD = "download or copy them again"


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model on this rank, and what counts its traffic."""

    model: Any
    meter: TrafficMeter
    session: ExpertParallelSession | None
    """None for vanilla expert parallelism."""
    expert_bytes: int
    """Memory of the experts on this rank."""
    source: ModelSource
    """What it was loaded from."""
    placement: Placement
    """What it was loaded by; vanilla expert parallelism ignores it."""


def load_whole_model(path: str, *, dtype: torch.dtype = torch.float32, experts: str | None = None) -> Any:
    """The model on one process, as a reference and for recording.

    Args:
        experts: Transformers' implementation of the experts; None: the one that it takes by itself.

    Raises:
        ModelError: no whole Mixture-of-Experts model there.
    """
    source = open_model(path)
    model = _from_pretrained(source, None if source.has_own_tensors else weights_of(source), dtype)
    if experts is not None:
        model.set_experts_implementation(experts)
    return model


def load_model(
    path: str,
    placement: Placement,
    groups: RankGroups,
    *,
    dispatch: str,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    equal_slots: bool = False,
) -> LoadedModel:
    """Load `path` for expert parallelism: `dispatch` is one of `cost.transport.DISPATCHES`.

    Vanilla ignores the placement: Transformers cuts equal contiguous shards.

    Args:
        equal_slots: give every device as many slots as the fullest, so that experts can move (`runtime.adapting`).

    Raises:
        MismatchError: the placement is not of this model, or the ranks are not of its topology.
        ModelError: not a MoE model, one whose experts can't be placed, or a checkpoint that is not whole.
    """
    source = open_model(path)
    _check_placement(placement, source)
    _check_fits(placement, dispatch)
    meter = TrafficMeter(topology=groups.topology, rank=groups.rank)
    if dispatch == "vanilla":
        return _load(source, placement, groups, dtype, meter, None)
    routes = layer_routes(placement, groups.rank, seed=seed, device=rank_device(), equal_slots=equal_slots)
    session = ExpertParallelSession(routes=routes, dispatcher=_DISPATCHERS[dispatch](groups=groups, meter=meter), meter=meter)
    return _load(source, placement, groups, dtype, meter, session)


def _check_placement(placement: Placement, source: ModelSource) -> None:
    """Raise MismatchError unless the placement is of this model: its layers, its number of experts."""
    if source.num_experts != placement.num_experts:
        raise MismatchError(
            f"{placement.source}: num_experts: {placement.num_experts} placed, {source.path} has {source.num_experts}; "
            "plan on a trace of this model"
        )
    placed, layers = set(placement.layer_ids), set(source.layers)
    if placed != layers:
        absent, extra = sorted(layers - placed), sorted(placed - layers)
        said = f"layer {absent[0]} of {source.path} is not placed" if absent else f"layer {extra[0]} is placed, {source.path} has none"
        raise MismatchError(f"{placement.source}: layers: {said}; plan on a trace of this model")


def _check_fits(placement: Placement, dispatch: str) -> None:
    """What the dispatch can't do, said before anything is loaded."""
    devices, experts = placement.topology.num_devices, placement.num_experts
    if dispatch == "vanilla" and experts % devices:
        raise MismatchError(f"--dispatch: vanilla needs {experts} experts to divide over {devices} ranks; use flat or hierarchical")
    codes = int(placement.slots_per_device().max()) * max(len(node.devices) for node in placement.topology.nodes)
    if codes > MAX_SLOT_CODE:
        raise MismatchError(f"{placement.source}: layers: {codes} slots on a node are over the limit of {MAX_SLOT_CODE}; use more nodes")


def _load(
    source: ModelSource,
    placement: Placement,
    groups: RankGroups,
    dtype: torch.dtype,
    meter: TrafficMeter,
    session: ExpertParallelSession | None,
) -> LoadedModel:
    """Through Transformers: by the placement where there is a session, else by its own shards."""
    if session is None:
        name, ep_plan, weights = VANILLA, _vanilla_plan(source), weights_of(source)
    else:
        name, ep_plan = GRACE, placed_plan(source.outline, GRACE_EXPERTS, GRACE_BLOCK, WHOLE)
        weights = weights_of(source, {layer_id: _experts_to_read(route) for layer_id, route in session.routes.items()})
    world = groups.topology.num_devices
    distributed = DistributedConfig(fsdp_size=world, ep_size=world, ep_implementation=name, ep_plan=ep_plan)
    register_names()
    with loading_for(meter, session, source.rows), bound_to(rank_device()):
        model = _from_pretrained(source, weights, dtype, distributed_config=distributed, device_map=_device_map(rank_device()))
    check_dense_weights(model, weights, source)
    keep_dense_weights(model)
    if session is not None:
        model.save_pretrained = _refuse_to_save
    return LoadedModel(
        model=model,
        meter=meter,
        session=session,
        expert_bytes=expert_bytes(model, source.layer_of_parameter),
        source=source,
        placement=placement,
    )


def _device_map(device: torch.device) -> torch.device | None:
    """Of a rank that is alone: Transformers makes no mesh for it, and would leave the model on the CPU."""
    return None if device.type == "cpu" else device


@contextmanager
def bound_to(device: torch.device) -> Iterator[None]:
    """Transformers takes the accelerator with the number LOCAL_RANK, where ranks may be more than accelerators: let it take this one."""
    before = os.environ.get("LOCAL_RANK")
    if device.index is None or before is None:
        yield
        return
    os.environ["LOCAL_RANK"] = str(device.index)
    try:
        yield
    finally:
        os.environ["LOCAL_RANK"] = before


def _experts_to_read(route: LayerRoute) -> tuple[int, ...]:
    """One a slot: Transformers' loader wants something in a spare one, too."""
    return tuple(max(0, expert) for expert in route.local_experts) or (0,)


def _refuse_to_save(*_: Any, **__: Any) -> None:
    """Transformers' own would write this rank's slots as experts 0, 1, ..."""
    raise UsageError("save_pretrained: a rank holds its own experts only; use grace_moe.runtime.model.saving.save_model on every rank")


def _vanilla_plan(source: ModelSource) -> dict[str, str]:
    """What of the model's own `ep_plan` is not expert parallelism is kept whole, as where experts are placed."""
    plan = source.outline.ep_plan or {}
    if DISPATCHED not in plan.values():
        raise ModelError(f"{source.config.model_type!r} has no expert-parallel plan in Transformers, so no vanilla dispatch; use flat")
    return {name: style if style in (DISPATCHED, EXPERTS) else WHOLE for name, style in plan.items()}


def _from_pretrained(source: ModelSource, weights: dict[str, Any] | None, dtype: torch.dtype, **more: Any) -> Any:
    """The model, of `weights` or else of its folder, with every weight accounted for."""
    with _quietly(), reading(source.path, "weights", _DOWNLOAD):
        model, info = source.model_class.from_pretrained(
            source.folder if weights is None else None,
            config=source.config,
            state_dict=weights,
            generation_config=load_generation_config(str(source.folder), source.config),
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # so that they are told, not cut off
            output_loading_info=True,
            **more,
        )
    check_loaded(info, source)
    return model


def keep_dense_weights(model: Any) -> None:
    """Transformers shards the dense weights (FSDP) where ranks hold different batches: gather them once, then keep them.

    Serving keeps attention data-parallel and whole; gathering it again in every pass would drown what is measured.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(False, recurse=False)


def expert_bytes(model: Any, names: Container[str] | None = None) -> int:
    """Memory of the experts that this rank holds, all layers.

    Args:
        names: of their parameters; None: those of a whole model that text is routed to.
    """
    if names is None:
        names = {name for experts in experts_by_layer(model).values() for name in experts.parameters}
    total = 0
    for name, parameter in model.named_parameters():
        if name in names:
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            total += local.numel() * local.element_size()
    return total


@contextmanager
def _quietly() -> Iterator[None]:
    """Without Transformers' bars, one a rank, and its report of a checkpoint that is not whole, which our error replaces."""
    transformers_logging.disable_progress_bar()
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
