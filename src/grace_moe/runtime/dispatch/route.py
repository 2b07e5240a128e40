"""One MoE layer of a placement, as the tensors that a rank looks up at run time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from grace_moe.choice import ChoiceTable, choice_tables, decode_choice_tables
from grace_moe.placement import LayerPlacement, Placement
from grace_moe.runtime.dispatch.dispatcher import Outgoing
from grace_moe.trace import DECODE, PREFILL

EMPTY_SLOT = -1


@dataclass(frozen=True, kw_only=True)
class LayerRoute:
    """Where this rank sends each expert's tokens in one layer. T tokens, K top-k, E experts, D devices."""

    layer_id: int
    rank: int
    seed: int
    local_experts: tuple[int, ...]
    """Logical ids of the experts in this rank's slots, in slot order; -1 = a spare slot."""
    choice: ChoiceTable
    """The replica choice, of tensors: of prefill, and of decode where that has none of its own."""
    decode_choice: ChoiceTable | None
    """The replica choice of decode steps; None = as in prefill."""
    slot_of_DE: torch.Tensor
    """int64: slot of each expert on each device, -1 = not there."""

    @property
    def num_slots(self) -> int:
        """Of this rank. One without experts has a spare slot that no token is sent to: loaders take no empty parameters."""
        return max(1, len(self.local_experts))

    @cached_property
    def slots_width(self) -> int:
        """More than the largest slot number on any device."""
        return int(self.slot_of_DE.max()) + 1

    def outgoing(
        self, hidden_TH: torch.Tensor, topk_ids_TK: torch.Tensor, weights_TK: torch.Tensor, first_token: int, phase: int = PREFILL
    ) -> Outgoing:
        """The tokens with the device and slot of each of their experts. Arguments as of `devices_of`."""
        devices = self.devices_of(topk_ids_TK, first_token, phase)
        slots = self.slots_of(devices, topk_ids_TK)
        return Outgoing(hidden_TH=hidden_TH, devices_TK=devices, slots_TK=slots, weights_TK=weights_TK, slots_width=self.slots_width)

    def devices_of(self, topk_ids_TK: torch.Tensor, first_token: int, phase: int = PREFILL) -> torch.Tensor:
        """`[T, K]` device that computes each pair, -1 where no expert is chosen.

        Args:
            first_token: number of the batch's first token on this rank; keeps the draws apart from step to step.
            phase: PREFILL or DECODE, of the whole batch.
        """
        tokens = torch.arange(first_token, first_token + len(topk_ids_TK), device=topk_ids_TK.device)
        sources = torch.full_like(tokens, self.rank)
        choice = self.decode_choice if phase == DECODE and self.decode_choice is not None else self.choice
        chosen: torch.Tensor = choice.choose(self.layer_id, topk_ids_TK, sources, tokens, seed=self.seed)
        return chosen

    def slots_of(self, devices_TK: torch.Tensor, topk_ids_TK: torch.Tensor) -> torch.Tensor:
        """`[T, K]` slot of each pair on its device, -1 where no expert is chosen."""
        slots = self.slot_of_DE[devices_TK.clamp(min=0), topk_ids_TK.clamp(min=0)]
        return torch.where(devices_TK >= 0, slots, EMPTY_SLOT)


Slots = tuple[tuple[int, ...], ...]
"""Per device, the experts in its slots, in slot order; -1 = a spare slot."""


def layer_routes(placement: Placement, rank: int, *, seed: int, device: torch.device, equal_slots: bool = False) -> dict[int, LayerRoute]:
    """This rank's routes, by the model's own layer number.

    Args:
        equal_slots: give every device as many slots as the fullest, in each layer, so that experts can move.
    """
    width = int(placement.slots_per_device().max()) if equal_slots else 0
    routes = {}
    for index, layer in enumerate(placement.layers):
        slots = tuple((*experts, *[EMPTY_SLOT] * (width - len(experts))) for experts in placement.experts_of_device(index))
        routes[layer.layer_id] = layer_route(layer, slots, placement, rank, seed=seed, device=device)
    return routes


def layer_route(layer: LayerPlacement, slots: Slots, placement: Placement, rank: int, *, seed: int, device: torch.device) -> LayerRoute:
    """This rank's route in one layer of a placement, whose experts are in these slots."""

    def on_device(table: ChoiceTable) -> ChoiceTable:
        return table.convert(lambda array: torch.from_numpy(array).to(device))

    alone = replace(placement, layers=(layer,))
    (choice,), (decode_choice,) = choice_tables(alone), decode_choice_tables(alone)
    return LayerRoute(
        layer_id=layer.layer_id,
        rank=rank,
        seed=seed,
        local_experts=slots[rank],
        choice=on_device(choice),
        decode_choice=None if decode_choice is None else on_device(decode_choice),
        slot_of_DE=slot_of_experts(slots, placement.num_experts).to(device),
    )


def slot_of_experts(slots: Sequence[Sequence[int]], num_experts: int) -> torch.Tensor:
    """int64 `[devices, experts]` slot of each expert on each device, -1 = not there."""
    slot_of = torch.full((len(slots), num_experts), EMPTY_SLOT, dtype=torch.int64)
    for device, experts in enumerate(slots):
        for slot, expert in enumerate(experts):
            if expert != EMPTY_SLOT:
                slot_of[device, expert] = slot
    return slot_of
