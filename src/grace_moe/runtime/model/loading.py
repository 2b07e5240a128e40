"""Loading a model so that each rank holds the dense weights and its own experts only."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.distributed import DistributedConfig
from transformers.utils import logging as transformers_logging

from grace_moe.errors import MismatchError, ModelError
from grace_moe.placement import Placement
from grace_moe.runtime.dispatch import AutoDispatcher, Dispatcher, FlatDispatcher, HierarchicalDispatcher
from grace_moe.runtime.dispatch.collectives import TrafficMeter
from grace_moe.runtime.dispatch.rank_groups import RankGroups
from grace_moe.runtime.dispatch.route import layer_routes
from grace_moe.runtime.job.ranks import rank_device
from grace_moe.runtime.model.expert_parallel import GRACE, GRACE_EXPERTS, VANILLA, layer_number, register_grace, register_vanilla
from grace_moe.runtime.model.session import ExpertParallelSession

MAX_SLOT_CODE = 32_767
"""A dispatched row names the device and slot on the far node in 16 bits."""
_DISPATCHERS: dict[str, Callable[..., Dispatcher]] = {
    "flat": FlatDispatcher,
    "hierarchical": HierarchicalDispatcher,
    "auto": AutoDispatcher,
}
_ONE_EXPERT = re.compile(r"^(?P<prefix>.*\.experts)\.(?P<expert>\d+)\.(?P<rest>.+)$")


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model on this rank, and what counts its traffic."""

    model: Any
    meter: TrafficMeter
    session: ExpertParallelSession | None
    """None for vanilla expert parallelism."""
    expert_bytes: int
    """Memory of the experts on this rank."""


def load_config(path: str) -> Any:
    """The model's configuration.

    Raises:
        ModelError: no model there, or not a Mixture-of-Experts.
    """
    if path.startswith(("/", ".", "~")) and not Path(path).is_dir():
        raise ModelError(f"{path}: no such folder; give a model folder or hub id")
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: config.json: {str(error).splitlines()[0]}; give a model folder or hub id") from error
    num_experts_of(config, path)
    return config


def num_experts_of(config: Any, path: str = "model") -> int:
    """Experts in each MoE layer. Raises ModelError for a model that has none."""
    text = config.get_text_config()
    for name in ("num_local_experts", "num_experts", "n_routed_experts"):
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 1:
            return value
    raise ModelError(f"{path}: config.json: {config.model_type!r} has no experts; give a Mixture-of-Experts model")


def load_whole_model(path: str, *, dtype: torch.dtype = torch.float32, experts: str = "grouped_mm") -> Any:
    """The model on one process, as a reference and for recording.

    Raises:
        ModelError: no whole Mixture-of-Experts model there.
    """
    load_config(path)
    transformers_logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, experts_implementation=experts)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{path}: weights: can't be read ({str(error).splitlines()[0]}); download or copy them again") from error


def load_tokenizer(path: str) -> Any:
    """The model's tokenizer. Raises ModelError where there is none."""
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: tokenizer: can't be read ({str(error).splitlines()[0]}); add the model's tokenizer files") from error


def load_model(
    path: str, placement: Placement, groups: RankGroups, *, dispatch: str, dtype: torch.dtype = torch.float32, seed: int = 0
) -> LoadedModel:
    """Load `path` for expert parallelism: `dispatch` is one of `wire.DISPATCHES`.

    Vanilla ignores the placement: Transformers cuts equal contiguous shards.

    Raises:
        MismatchError: the placement is not of this model, or the ranks are not of its topology.
        ModelError: not a MoE model, or one without an expert-parallel plan in Transformers.
    """
    config = load_config(path)
    if num_experts_of(config, path) != placement.num_experts:
        raise MismatchError(
            f"{placement.source}: num_experts: {placement.num_experts} placed, {path} has {num_experts_of(config, path)}; "
            "plan on a trace of this model"
        )
    _check_fits(placement, dispatch)
    transformers_logging.disable_progress_bar()  # one bar a rank would be noise
    meter = TrafficMeter(topology=groups.topology, rank=groups.rank)
    session = None
    weights: dict[str, Any] | None = None
    if dispatch == "vanilla":
        register_vanilla(meter)
        name, ep_plan = VANILLA, None
    else:
        dispatcher = _DISPATCHERS[dispatch](groups=groups, meter=meter)
        routes = layer_routes(placement, groups.rank, seed=seed, device=rank_device())
        session = ExpertParallelSession(routes=routes, dispatcher=dispatcher, meter=meter)
        register_grace(session, placement.num_experts)
        name, ep_plan = GRACE, _grace_plan(config)
        local = {layer_id: route.local_experts or (0,) for layer_id, route in routes.items()}
        weights = local_weights(local_folder(path), local, placement.num_experts)
    world = groups.topology.num_devices
    distributed = DistributedConfig(fsdp_size=world, ep_size=world, ep_implementation=name, ep_plan=ep_plan)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
        path if weights is None else None,
        config=config,
        state_dict=weights,
        dtype=dtype,
        experts_implementation="grouped_mm",
        distributed_config=distributed,
    )
    keep_dense_weights(model)
    return LoadedModel(model=model, meter=meter, session=session, expert_bytes=expert_bytes(model))


def _check_fits(placement: Placement, dispatch: str) -> None:
    """What the dispatch can't do, said before anything is loaded."""
    devices, experts = placement.topology.num_devices, placement.num_experts
    if dispatch == "vanilla" and experts % devices:
        raise MismatchError(f"--dispatch: vanilla needs {experts} experts to divide over {devices} ranks; use flat or hierarchical")
    codes = int(placement.slots_per_device().max()) * max(len(node.devices) for node in placement.topology.nodes)
    if codes > MAX_SLOT_CODE:
        raise MismatchError(f"{placement.source}: layers: {codes} slots on a node are over the limit of {MAX_SLOT_CODE}; use more nodes")


def local_folder(path: str) -> Path:
    """The model's folder; a hub id is downloaded (weights and configuration) where there is a hub.

    Raises:
        ModelError: neither a folder nor a hub id that can be had.
    """
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=["*.safetensors", "*.json"]))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: neither a folder nor a model of the hub ({str(error).splitlines()[0]}); check the name") from error


def keep_dense_weights(model: Any) -> None:
    """Transformers shards the dense weights (FSDP) where ranks hold different batches: gather them once, then keep them.

    Serving keeps attention data-parallel and whole; gathering it again in every pass would drown what is measured.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(False, recurse=False)


def local_weights(path: Path, local_experts: dict[int, tuple[int, ...]], num_experts: int) -> dict[str, Any]:
    """A state dict that reads lazily, with this rank's experts renumbered by slot.

    Args:
        local_experts: per layer number, the logical ids in slot order.

    Raises:
        ModelError: no safetensors there, or a damaged file.
    """
    weights: dict[str, Any] = {}
    for file in checkpoint_files(path):
        try:
            handle = safe_open(file, framework="pt")
            keys = list(handle.keys())
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: can't be read ({error}); download or copy it again") from error
        for key in keys:
            view = handle.get_slice(key)
            one = _ONE_EXPERT.match(key)
            if one is not None:
                for slot, expert in enumerate(local_experts[layer_number(key)]):
                    if expert == int(one["expert"]):
                        weights[f"{one['prefix']}.{slot}.{one['rest']}"] = view
            elif ".experts." in key and view.get_shape()[:1] == [num_experts]:
                weights[key] = _Rows(view, local_experts[layer_number(key)])
            else:
                weights[key] = view
    return weights


def checkpoint_files(path: Path) -> list[Path]:
    """The safetensors files of a local model folder, one or sharded."""
    index = path / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        return [path / name for name in names]
    if not (path / "model.safetensors").exists():
        raise ModelError(f"{path}: model.safetensors: no such file; give a local folder with a safetensors checkpoint")
    return [path / "model.safetensors"]


class _Rows:
    """Some rows of a stacked checkpoint tensor `[experts, ...]`, read when they are asked for, like a safetensors slice."""

    def __init__(self, view: Any, rows: tuple[int, ...]) -> None:
        self.view, self.rows = view, rows

    def get_shape(self) -> list[int]:
        return [len(self.rows), *self.view.get_shape()[1:]]

    def get_dtype(self) -> str:
        return str(self.view.get_dtype())

    def __getitem__(self, index: Any) -> torch.Tensor:
        return torch.cat([self.view[row : row + 1] for row in self.rows])[index]


def _grace_plan(config: Any) -> dict[str, str]:
    """The model's own `ep_plan` with our style for the experts' parameters."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    plan = dict(getattr(model, "ep_plan", None) or {})
    if "ep_dispatch_experts" not in plan.values():
        raise ModelError(f"{config.model_type!r} has no expert-parallel plan in Transformers; this architecture is not supported")
    return {name: GRACE_EXPERTS if style == "grouped_gemm" else style for name, style in plan.items()}


def expert_bytes(model: Any) -> int:
    """Memory of the experts that this rank holds, all layers."""
    from torch.distributed.tensor import DTensor

    total = 0
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            total += local.numel() * local.element_size()
    return total
