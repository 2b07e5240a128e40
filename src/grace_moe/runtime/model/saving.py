"""A placed model as one checkpoint again, which plain Transformers loads: layer by layer, so that no rank holds the whole model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers.core_model_loading import revert_weight_conversion

from grace_moe.errors import GraceError, UsageError, VerificationError
from grace_moe.files import dump_json, write_atomically
from grace_moe.runtime.dispatch.rank_groups import message_device
from grace_moe.runtime.dispatch.route import LayerRoute
from grace_moe.runtime.model.loading import LoadedModel
from grace_moe.runtime.model.parameter_names import layer_of

_WEIGHTS, _INDEX = "model-{:05d}-of-{:05d}.safetensors", "model.safetensors.index.json"


def save_model(loaded: LoadedModel, folder: str | Path) -> None:
    """Write weights, `config.json` and `generation_config.json`, as the checkpoint that the model came from was laid out; quantised weights
    as they were loaded. Collective: every rank calls it; rank 0 writes, one file a layer, and the index last.

    Raises:
        UsageError: the model runs Transformers' own expert parallelism, or the folder has a checkpoint already.
        VerificationError: replicas of an expert differ, as where one optimiser step left out `finish_expert_gradients`; nothing but files
            without an index is left.
    """
    if loaded.session is None:
        raise UsageError("dispatch vanilla: save it with the model's own save_pretrained")
    folder = Path(folder)
    first = dist.get_rank() == 0
    taken = first and any(folder.glob("*.safetensors*"))
    _agree(UsageError(f"{folder}: has a checkpoint already; give a new folder") if taken else None)
    groups = _by_layer(loaded)
    outline = loaded.source.outline  # has the shapes of all experts, which some conversions ask for
    outline._weight_conversions = list(loaded.source.conversion.used)
    weight_map: dict[str, str] = {}
    total = 0
    if first:
        folder.mkdir(parents=True, exist_ok=True)
    for number, names in enumerate(groups, start=1):
        part = dict(_gathered(loaded, names))
        if first:
            file = _WEIGHTS.format(number, len(groups))
            part = {name: value.contiguous() for name, value in revert_weight_conversion(outline, part).items()}
            write_atomically(folder / file, safetensors.torch.save(part, metadata={"format": "pt"}))
            weight_map |= dict.fromkeys(part, file)
            total += sum(value.numel() * value.element_size() for value in part.values())
    if first:
        write_atomically(folder / _INDEX, dump_json({"metadata": {"total_size": total}, "weight_map": weight_map}))
        loaded.model.config.architectures = [loaded.source.model_class.__name__]
        loaded.model.config.save_pretrained(folder)
        if loaded.model.can_generate():
            loaded.model.generation_config.save_pretrained(folder)
    dist.barrier()


def _agree(found: GraceError | None) -> None:
    """Raise on every rank what rank 0 found. Collective."""
    told: list[Any] = [found]
    dist.broadcast_object_list(told, src=0)
    if told[0] is not None:
        raise told[0]


def _by_layer(loaded: LoadedModel) -> list[list[str]]:
    """The names of what is saved: each layer's, and those of no layer first. A tied weight has one of its names."""
    model = loaded.model
    once = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    layers: dict[int, list[str]] = {}
    for name in model.state_dict():
        if name in once:
            layers.setdefault(layer_of(name, otherwise=-1), []).append(name)
    return [layers[layer_id] for layer_id in sorted(layers)]


def _gathered(loaded: LoadedModel, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor whole, on rank 0; on the others, nothing. Collective."""
    state, source = loaded.model.state_dict(), loaded.source
    assert loaded.session is not None
    for name in names:
        layer_id = source.layer_of_parameter.get(name)
        if layer_id is None:
            whole = _whole(state[name])
        else:
            local = state[name].to_local() if isinstance(state[name], DTensor) else state[name]
            whole = _all_experts(local.detach(), loaded.session.routes[layer_id], source.shapes[name], name)
        if dist.get_rank() == 0:
            yield name, whole.detach().cpu()


def _whole(value: Any) -> torch.Tensor:
    """A dense weight or buffer of which each rank may hold a part. Collective."""
    if isinstance(value, DTensor):
        near: Any = value.to(message_device())
        value = near.full_tensor()
    whole: torch.Tensor = value
    return whole


def _all_experts(local: torch.Tensor, route: LayerRoute, shape: tuple[int, ...], name: str) -> torch.Tensor:
    """`shape` on rank 0: every expert's rows, once all its replicas are found equal. Rows that no expert has are zeros."""
    of_rank = _experts_of_ranks(route)
    rows = len(local) // route.num_slots
    taken = [slot for slot, expert in enumerate(route.local_experts) if expert >= 0]
    own = local.unflatten(0, (route.num_slots, rows))[taken]
    if route.rank != 0:
        if of_rank[route.rank]:
            dist.send(own.to(message_device()).contiguous(), dst=0)
        _agree(None)
        return local
    num_experts = route.slot_of_DE.shape[1]
    whole = local.new_zeros(shape)
    experts_ER = whole[: num_experts * rows].unflatten(0, (num_experts, rows))
    seen: set[int] = set()
    found = None
    for rank, experts in enumerate(of_rank):
        if not experts:
            continue
        slots = own if rank == 0 else own.new_empty((len(experts), *own.shape[1:]), device=message_device())
        if rank != 0:
            dist.recv(slots, src=rank)
            slots = slots.to(own.device)
        for expert, part in zip(experts, slots, strict=True):
            if expert not in seen:
                experts_ER[expert] = part
            elif not torch.equal(experts_ER[expert], part):
                mend = "call finish_expert_gradients before each optimiser step"
                found = VerificationError(f"{name}: the replicas of expert {expert} differ; {mend}")
            seen.add(expert)
    _agree(found)
    return whole


def _experts_of_ranks(route: LayerRoute) -> list[list[int]]:
    """Per rank, its experts in slot order."""
    return [
        [expert for _, expert in sorted((slot, expert) for expert, slot in enumerate(slots) if slot >= 0)]
        for slots in route.slot_of_DE.tolist()
    ]
