"""Loading a model so that each rank holds the dense weights and its own experts only, and no weight that its checkpoint does not give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM
from transformers.distributed import DistributedConfig
from transformers.utils import logging as transformers_logging

from grace_moe.errors import MismatchError, ModelError
from grace_moe.placement import Placement
from grace_moe.runtime.dispatch import AutoDispatcher, Dispatcher, FlatDispatcher, HierarchicalDispatcher
from grace_moe.runtime.dispatch.collectives import TrafficMeter
from grace_moe.runtime.dispatch.rank_groups import RankGroups, rank_device
from grace_moe.runtime.dispatch.route import layer_routes
from grace_moe.runtime.model.accounting import check_loaded, check_shapes
from grace_moe.runtime.model.checkpoint import Tensors, check_experts, local_folder, of_slots, read_tensors
from grace_moe.runtime.model.description import load_config, load_generation_config, num_experts_of
from grace_moe.runtime.model.expert_parallel import GRACE, GRACE_EXPERTS, VANILLA, register_names
from grace_moe.runtime.model.load_under_way import loading_for
from grace_moe.runtime.model.placed_experts import experts_by_layer
from grace_moe.runtime.model.reading import reading
from grace_moe.runtime.model.session import ExpertParallelSession

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


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A model before it is loaded: its folder checked as far as that goes without reading weights."""

    path: str
    config: Any
    num_experts: int
    tensors: Tensors
    outline: Any
    """The model on the meta device."""


def load_whole_model(path: str, *, dtype: torch.dtype = torch.float32, experts: str = "grouped_mm") -> Any:
    """The model on one process, as a reference and for recording.

    Raises:
        ModelError: no whole Mixture-of-Experts model there.
    """
    source = _open(path)
    with _quietly(), reading(path, "weights", _DOWNLOAD):
        model, info = AutoModelForCausalLM.from_pretrained(
            local_folder(path),
            config=source.config,
            dtype=dtype,
            experts_implementation=experts,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # so that they are told, not cut off
            output_loading_info=True,
        )
    check_loaded(info, path)
    return model


def load_model(
    path: str, placement: Placement, groups: RankGroups, *, dispatch: str, dtype: torch.dtype = torch.float32, seed: int = 0
) -> LoadedModel:
    """Load `path` for expert parallelism: `dispatch` is one of `cost.transport.DISPATCHES`.

    Vanilla ignores the placement: Transformers cuts equal contiguous shards.

    Raises:
        MismatchError: the placement is not of this model, or the ranks are not of its topology.
        ModelError: not a MoE model, one without an expert-parallel plan in Transformers, or a checkpoint that is not whole.
    """
    source = _open(path)
    _check_placement(placement, source)
    _check_fits(placement, dispatch)
    meter = TrafficMeter(topology=groups.topology, rank=groups.rank)
    if dispatch == "vanilla":
        return _load(source, groups, dtype, meter, None)
    routes = layer_routes(placement, groups.rank, seed=seed, device=rank_device())
    session = ExpertParallelSession(routes=routes, dispatcher=_DISPATCHERS[dispatch](groups=groups, meter=meter), meter=meter)
    return _load(source, groups, dtype, meter, session)


def _open(path: str) -> _Source:
    """Configuration and headers, on every rank alike, before anything is loaded. Raises ModelError."""
    config = load_config(path)
    num_experts = num_experts_of(config, path)
    folder = local_folder(path)
    tensors = read_tensors(folder)
    with reading(path, "config.json", "give the folder of a model that Transformers knows"), torch.device("meta"):
        outline = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    check_experts(tensors, experts_by_layer(outline), num_experts, folder)
    if getattr(config, "quantization_config", None) is None:  # packed weights have shapes of their own
        check_shapes(tensors, outline, path)
    return _Source(path=path, config=config, num_experts=num_experts, tensors=tensors, outline=outline)


def _check_placement(placement: Placement, source: _Source) -> None:
    """Raise MismatchError unless the placement is of this model: its layers, its number of experts."""
    if source.num_experts != placement.num_experts:
        raise MismatchError(
            f"{placement.source}: num_experts: {placement.num_experts} placed, {source.path} has {source.num_experts}; "
            "plan on a trace of this model"
        )
    placed, layers = set(placement.layer_ids), set(experts_by_layer(source.outline))
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
    source: _Source, groups: RankGroups, dtype: torch.dtype, meter: TrafficMeter, session: ExpertParallelSession | None
) -> LoadedModel:
    """Through Transformers: by the placement where there is a session, else by its own shards."""
    name, ep_plan, weights = VANILLA, None, None
    if session is not None:
        name, ep_plan = GRACE, _placed_plan(source)
        local = {layer_id: route.local_experts or (0,) for layer_id, route in session.routes.items()}
        weights = of_slots(source.tensors, local, source.num_experts)
    world = groups.topology.num_devices
    register_names()
    with _quietly(), loading_for(meter, session), reading(source.path, "weights", _DOWNLOAD):
        model, info = MODEL_FOR_CAUSAL_LM_MAPPING[type(source.config)].from_pretrained(
            local_folder(source.path) if weights is None else None,
            config=source.config,
            state_dict=weights,
            generation_config=load_generation_config(str(local_folder(source.path)), source.config),
            dtype=dtype,
            experts_implementation="grouped_mm",
            distributed_config=DistributedConfig(fsdp_size=world, ep_size=world, ep_implementation=name, ep_plan=ep_plan),
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # so that they are told, not cut off
            output_loading_info=True,
        )
    check_loaded(info, source.path)
    keep_dense_weights(model)
    return LoadedModel(model=model, meter=meter, session=session, expert_bytes=expert_bytes(model))


def _placed_plan(source: _Source) -> dict[str, str]:
    """The model's own `ep_plan` with our style for the experts' parameters."""
    plan = dict(getattr(source.outline, "ep_plan", None) or {})
    if "ep_dispatch_experts" not in plan.values():
        raise ModelError(f"{source.config.model_type!r} has no expert-parallel plan in Transformers; this architecture is not supported")
    return {name: GRACE_EXPERTS if style == "grouped_gemm" else style for name, style in plan.items()}


def keep_dense_weights(model: Any) -> None:
    """Transformers shards the dense weights (FSDP) where ranks hold different batches: gather them once, then keep them.

    Serving keeps attention data-parallel and whole; gathering it again in every pass would drown what is measured.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(False, recurse=False)


def expert_bytes(model: Any) -> int:
    """Memory of the experts that this rank holds, all layers."""
    total = 0
    for name, parameter in model.named_parameters():
        if ".experts." in name:
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
