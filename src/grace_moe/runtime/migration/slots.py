"""The slots of a layer: what stands in them after a switch, and the weights of the experts in this rank's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from grace_moe.errors import MismatchError
from grace_moe.runtime.dispatch.route import EMPTY_SLOT, LayerRoute, Slots
from grace_moe.runtime.model.placed_experts import by_slot, placed_experts


def slots_of(route: LayerRoute) -> Slots:
    """What stands in every device's slots; all have as many as this rank."""
    table = [[EMPTY_SLOT] * route.num_slots for _ in range(len(route.slot_of_DE))]
    for device, row in enumerate(route.slot_of_DE.tolist()):
        for expert, slot in enumerate(row):
            if slot != EMPTY_SLOT:
                table[device][slot] = expert
    return tuple(map(tuple, table))


def arranged(held: Slots, wanted: Sequence[Sequence[int]]) -> Slots:
    """Slots after a switch. An expert that stays keeps its slot; those that come take the free ones, both in ascending order.

    Args:
        wanted: per device, its experts.

    Raises:
        MismatchError: more experts than a device has slots.
    """
    after = []
    for device, (slots, experts) in enumerate(zip(held, wanted, strict=True)):
        if len(experts) > len(slots):
            raise MismatchError(f"device {device}: {len(experts)} experts for {len(slots)} slots; plan with fewer replicas")
        coming: Iterator[int] = iter(sorted(set(experts) - set(slots)))
        after.append(tuple(expert if expert in experts else next(coming, EMPTY_SLOT) for expert in slots))
    return tuple(after)


class SlotWeights:
    """The weights of one layer's slots on this rank.

    FSDP keeps a second copy of the experts for the passes; a switch writes both.
    """

    def __init__(self, modules: Sequence[torch.nn.Module], route: LayerRoute) -> None:
        self._modules, self._route = modules, route
        self._kept = []
        """Of each parameter, `[slots, ...]` of the copy that stays when FSDP drops the other."""
        for module in modules:
            if isinstance(module, FSDPModule):
                module.reshard()  # the next pass gathers it again, once
            self._kept += [by_slot(_local(parameter), route) for _, parameter in module.named_parameters(recurse=False)]
        self.expert_bytes = sum(kept[0].nbytes for kept in self._kept)
        """Of one expert of this layer."""

    @property
    def _device(self) -> torch.device:
        return self._kept[0].device

    def read(self, slot: int) -> torch.Tensor:
        """uint8 `[expert_bytes]` on the CPU: a copy of what stands in a slot."""
        with _beside_passes(self._device):
            return torch.cat([kept[slot].reshape(-1).view(torch.uint8).cpu() for kept in self._kept])

    def brought(self, weights: torch.Tensor) -> torch.Tensor:
        """Weights that came to the CPU, on the slots' own device: a switch is to have a short way."""
        if self._device.type == "cpu":
            return weights
        near = torch.empty_like(weights, device=self._device)
        with _beside_passes(self._device):
            return near.copy_(weights)

    def write(self, slot: int, weights: torch.Tensor) -> None:
        """Put weights, as `brought` gives them, into a slot."""
        parts = weights.split([kept[slot].nbytes for kept in self._kept])
        used = [by_slot(_local(p), self._route) for module in self._modules for _, p in module.named_parameters(recurse=False)]
        for part, kept, now in zip(parts, self._kept, used, strict=True):
            for place in (kept,) if kept.data_ptr() == now.data_ptr() else (kept, now):
                place[slot].reshape(-1).view(torch.uint8).copy_(part)


def slot_weights(model: torch.nn.Module) -> dict[int, SlotWeights]:
    """Of each MoE layer of a loaded model, by its own number."""
    of_layer: dict[int, tuple[list[torch.nn.Module], LayerRoute]] = {}
    for module, route in placed_experts(model):
        of_layer.setdefault(route.layer_id, ([], route))[0].append(module)
    return {layer_id: SlotWeights(modules, route) for layer_id, (modules, route) in of_layer.items()}


@contextmanager
def _beside_passes(device: torch.device) -> Iterator[None]:
    """What a GPU is asked to copy inside the block, it does beside the passes and not between them, after what it has been asked before;
    done at the end."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


def _local(parameter: torch.Tensor) -> torch.Tensor:
    """The same memory as a plain tensor, out of autograd's sight."""
    plain = parameter.detach()
    return plain.to_local().detach() if isinstance(plain, DTensor) else plain
