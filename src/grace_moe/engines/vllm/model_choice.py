"""One model's replica choice on this rank, in step with the map that vLLM serves and the batch that it runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from grace_moe.choice.hashing import layer_salt
from grace_moe.engines.live.given_maps import GivenMaps
from grace_moe.engines.live.replica_choice import SEED, RankChoice, rank_choice
from grace_moe.engines.slot_map import SlotMap
from grace_moe.engines.vllm.choice_tables import kernel_tables
from grace_moe.engines.vllm.sampled import RouterSample
from grace_moe.placement import LayerPlacement, Placement

if TYPE_CHECKING:
    from grace_moe.engines.vllm.choice_kernel import DeviceTables

Row = npt.NDArray[np.integer[Any]]
LAST_TOKEN = 2**31 - 1
"""Token numbers begin anew after it."""


@dataclass
class ModelChoice:
    """See the module. On a GPU its tables lie at addresses that stay, so that CUDA graphs see each change."""

    planned: Placement
    """Tells the nodes, the layers' numbers, and what the layers' own choices are."""
    rank: int
    choice: str
    """A key of `engines.live.replica_choice.POLICIES`."""
    given: GivenMaps
    device: torch.device
    sample: RouterSample | None = None
    """Where re-planning decides by what routers chose."""
    rows: list[Row] = field(default_factory=list)
    """The map that is followed."""
    placed: list[LayerPlacement] = field(default_factory=list)
    """What is chosen by: its weights may change under the same map."""
    layers: list[RankChoice] = field(default_factory=list)
    on_device: list[DeviceTables] = field(default_factory=list)
    """Empty without a GPU."""
    steps: list[torch.Tensor] = field(default_factory=list)
    """For each part of a batch that runs apart: int64 number of its first token, and 1 in decode."""
    starts: list[int] = field(default_factory=lambda: [0])
    """First token of each part of the batch that runs."""
    routed: int = 0
    """Tokens that this rank has routed before the batch that runs."""
    decode: bool = False
    """Whether every request of the next batch is past its prompt."""

    def follow(self, rows: Iterable[tuple[int, Row]]) -> None:
        """Choose by these rows `[slots]` of the layers' map from now on. The first call gives all layers."""
        for index, row in rows:
            layer = self.given.layer(index, row) or self._evenly(index, row)
            if self.has(index, row) and self.placed[index] == layer:
                continue
            self._put(index, row, layer)

    def has(self, index: int, row: Row) -> bool:
        """Whether a layer's map is this row already."""
        return index < len(self.rows) and bool((self.rows[index] == row).all())

    def _put(self, index: int, row: Row, layer: LayerPlacement) -> None:
        topology = self.planned.topology
        chosen = rank_choice(layer, row, topology, self.rank, self.choice)
        new = index == len(self.rows)
        self.rows[index : index + 1] = [row.copy()]
        self.placed[index : index + 1] = [layer]
        self.layers[index : index + 1] = [chosen.convert(torch.from_numpy)]
        if self.device.type == "cpu":
            return
        widest = min(topology.num_devices, len(row) - self.planned.num_experts + 1)
        tables = kernel_tables(chosen, topology.node_of_device, width=1 << (widest - 1).bit_length())
        if new:
            own_node = int(topology.node_of_device[self.rank])
            self.on_device.append(_kernel().DeviceTables(tables, layer_salt(SEED, layer.layer_id), own_node, self.device))
        else:
            self.on_device[index].refill(tables)

    def _evenly(self, index: int, row: Row) -> LayerPlacement:
        """The layer of a map that is not ours, as before the first rearrangement: its slots share evenly."""
        ours = self.planned.layers[index]
        slots = SlotMap(
            physical_to_logical=row[None].astype(np.int32),
            layer_ids=(ours.layer_id,),
            num_experts=self.planned.num_experts,
            num_ranks=self.planned.topology.num_devices,
        )
        (layer,) = slots.to_placement(self.planned.topology).layers
        return replace(layer, node_prices=ours.node_prices)

    def begin(self, num_tokens: int, starts: list[int]) -> None:
        """A batch is about to run.

        Args:
            num_tokens: how many tokens it has, without padding.
            starts: first token of each part that runs apart; `[0]` where it runs whole.
        """
        while len(self.steps) < len(starts):
            self.steps.append(torch.zeros(2, dtype=torch.int64, device=self.device))
        for step, start in zip(self.steps, starts, strict=False):
            step[0].fill_(self.routed + start)
            step[1].fill_(int(self.decode))
        self.starts = starts
        self.routed += num_tokens
        if self.routed > LAST_TOKEN:
            self.routed = 0

    def slots(
        self, index: int, topk_ids: torch.Tensor, part: int, load_view: torch.Tensor, record: torch.Tensor, unpadded: torch.Tensor | None
    ) -> torch.Tensor:
        """`[T, K]` slots of a layer's pairs; where `record` is set, they are added to the loads.

        Args:
            part: of the batch.
            load_view: int32 `[slots]` pairs of each slot.
            unpadded: int32 scalar, tokens that are no padding; None = all.
        """
        if self.sample is not None:
            self.sample.note(index, self.starts[part], topk_ids)
        if self.on_device:
            found: torch.Tensor = _kernel().choose_and_record(
                self.on_device[index], topk_ids, self.steps[part], load_view, record, unpadded
            )
            return found
        first, decode = self.steps[part].tolist()
        tokens = torch.arange(first, first + len(topk_ids))
        slots: torch.Tensor = self.layers[index].slots(topk_ids.long(), tokens, decode=bool(decode))
        if bool(record):
            real = slots if unpadded is None else slots[: int(unpadded)]
            load_view += torch.bincount(real[real >= 0].flatten(), minlength=len(load_view)).to(load_view.dtype)
        return slots.to(topk_ids.dtype)


def _kernel() -> Any:
    from grace_moe.engines.vllm import choice_kernel

    return choice_kernel
