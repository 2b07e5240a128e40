"""Our replica choice at SGLang's seams (read in 0.5.23). By itself, SGLang takes an expert's first replica on a rank's node, whatever the
weights.

- **near**: the table that `--ep-dispatch-algorithm static` reads has one slot for each expert and rank. Where several replicas are equally
  near to several ranks, the ranks are dealt out to them by the plan's weights. It costs nothing while serving.
- **joint**: all of a token's experts are chosen together, so that it visits the fewest nodes. In place of the lookup in that table.

Both only where each rank routes its own tokens: with an all-to-all backend. Tables follow the map that serves, layer by layer as
`--eplb-rebalance-layers-per-chunk` changes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from grace_moe.choice import DRAW_BITS, JointChoiceTable, ReplicaChoiceTable
from grace_moe.engines.live.replica_choice import RankChoice, rank_choice
from grace_moe.placement import LayerPlacement, Placement
from grace_moe.topology import Topology

if TYPE_CHECKING:
    import torch

LOG = logging.getLogger("sglang.grace_moe")
LOCATION = "sglang.srt.eplb.expert_location"
DISPATCH = "sglang.srt.eplb.expert_location_dispatch"
OURS = "grace_moe_choice"
"""The attribute of SGLang's dispatch information that has a layer's joint choice."""
LAST_TOKEN = 2**31
"""Token numbers begin anew before it."""

Row = npt.NDArray[np.integer[Any]]


def served_layer(planned: LayerPlacement, row: Row, num_ranks: int, dead: tuple[int, ...] = ()) -> LayerPlacement:
    """A planned layer as a map `[slots]` has it: experts on the devices that the plan says keep their weights there, the replicas of
    others share evenly. Replicas on dead ranks count only where an expert has no others."""
    per_rank = len(row) // num_ranks
    held: list[dict[int, bool]] = [{} for _ in planned.devices_of_expert]
    for slot, expert in enumerate(row.tolist()):
        held[expert][slot // per_rank] = slot // per_rank not in dead
    devices, weights = [], []
    for ranks, was, shares in zip(held, planned.devices_of_expert, planned.replica_weights, strict=True):
        now = tuple(rank for rank, alive in ranks.items() if alive) or tuple(ranks)
        same = set(now) == set(was)
        devices.append(was if same else now)
        weights.append(shares if same else (1.0 / len(now),) * len(now))
    return replace(planned, devices_of_expert=tuple(devices), replica_weights=tuple(weights), decode_weights=())


def near_slots(layer: LayerPlacement, row: Row, topology: Topology, rank: int) -> npt.NDArray[np.int64]:
    """`[experts]` slot that a rank's tokens take. Ranks that have the same replicas near are dealt out to them by weight; where an expert's
    dealing begins depends on its number, so that what is left over doesn't all fall to one rank."""
    choice = rank_choice(layer, row, topology, rank, "near")
    table = choice.prefill
    assert isinstance(table, ReplicaChoiceTable)
    alike = (table.devices == table.devices[rank]).all(-1) & (table.thresholds == table.thresholds[rank]).all(-1)  # [ranks, experts]
    among, place = alike.sum(axis=0), alike[:rank].sum(axis=0)
    experts = np.arange(len(among))
    middle = (2 * ((place + experts) % among) + 1) / (2 * among)  # of the rank's share of all draws
    point = np.rint(middle * (1 << DRAW_BITS)).astype(np.int64)  # as thresholds are rounded: a point on one stays on it
    device = table.devices[rank, experts, (point[:, None] >= table.thresholds[rank]).sum(axis=1)]
    slots: npt.NDArray[np.int64] = choice.slot_of_ED[experts, device]
    return slots


@dataclass
class JointLayer:
    """One layer's joint choice on this rank, of tensors whose addresses stay: CUDA graphs see each change."""

    choice: RankChoice
    routed: torch.Tensor
    """int64 number of tokens that were routed here so far: it numbers the next."""

    def slots(self, topk_ids: torch.Tensor) -> torch.Tensor:
        """`[tokens, k]` slots for the experts of `topk_ids`, of its type; as SGLang's `topk_ids_logical_to_physical`."""
        import torch

        tokens = self.routed + torch.arange(len(topk_ids), device=topk_ids.device)
        slots: torch.Tensor = self.choice.slots(topk_ids.long(), tokens, decode=False)
        self.routed.add_(len(topk_ids)).remainder_(LAST_TOKEN)
        return slots.to(topk_ids.dtype)

    def refill(self, choice: RankChoice) -> None:
        """Choose by another map's tables, of the same shapes."""
        pairs = [(self.choice.slot_of_ED, choice.slot_of_ED)]
        pairs += [(old, getattr(choice.prefill, name)) for name, old in vars(self.choice.prefill).items()]
        for old, new in pairs:
            old.copy_(new)


@dataclass
class Choosing:
    """The replica choice of one process of SGLang, in step with the map that serves."""

    planned: Placement
    choice: str
    """`near` or `joint`."""
    dead: tuple[int, ...] = ()
    """Ranks whose slots are in no table."""
    joint: dict[int, JointLayer] = field(default_factory=dict)
    """Decoder layer -> its choice."""
    rank: int = 0

    def hooks(self) -> list[tuple[str, str, Callable[..., Any]]]:
        """(target, kind, function) for SGLang's hook registry."""
        tables = (f"{LOCATION}.ExpertLocationMetadata._init_raw", "AFTER", self.fill_table)
        if self.choice == "near":
            return [tables]
        return [
            tables,
            (f"{LOCATION}.set_global_expert_location_metadata", "AFTER", self.follow_map),
            (f"{LOCATION}.ExpertLocationMetadata.update", "AFTER", self.follow_update),
            (f"{DISPATCH}.ExpertLocationDispatchInfo.init_new", "AROUND", self.tell_layer),
            (f"{DISPATCH}.topk_ids_logical_to_physical", "AROUND", self.choose),
        ]

    def fill_table(
        self, metadata: Any, ep_size: int, physical_to_logical_map: Any, logical_to_all_physical_map: Any, moe_ep_rank: int | None = None
    ) -> None:
        """Put near slots into the table of a new map, for the layers that have a plan."""
        import torch

        table = metadata.logical_to_rank_dispatch_physical_map
        if table is None or ep_size != self.planned.topology.num_devices:
            why = f"{ep_size} ranks, and the plan is for {self.planned.topology.shape}"
            LOG.warning("GRACE-MoE: SGLang chooses replicas: %s", "--ep-dispatch-algorithm is not static" if table is None else why)
            return
        self.rank = torch.distributed.get_rank() % ep_size if moe_ep_rank is None else moe_ep_rank
        for layer_id, layer, row in self._served(metadata, range(metadata.num_layers)):
            slots = near_slots(layer, row, self.planned.topology, self.rank)
            table[layer_id] = torch.from_numpy(slots).to(table)

    def follow_map(self, result: None, value: Any, allow_overwrite: bool = False) -> None:
        """A map begins to serve."""
        ours = value is not None and value.logical_to_rank_dispatch_physical_map is not None
        if ours and value.ep_size == self.planned.topology.num_devices:
            self._follow(value, range(value.num_layers))
        else:
            self.joint.clear()

    def follow_update(self, result: None, metadata: Any, other: Any, update_layer_ids: Iterable[int]) -> None:
        """Some layers of the map that serves have changed."""
        if self.joint:
            self._follow(metadata, update_layer_ids)

    def tell_layer(self, original: Callable[..., Any], cls: Any, layer_id: int, **named: Any) -> Any:
        """SGLang's dispatch information of a layer, with its joint choice where each rank routes its own tokens."""
        info = original(cls, layer_id, **named)
        if info is not None and not info.rank_invariant and info.ep_dispatch_algorithm == "static":
            setattr(info, OURS, self.joint.get(layer_id))
        return info

    def choose(self, original: Callable[..., torch.Tensor], topk_ids: torch.Tensor, info: Any, *rest: Any, **named: Any) -> torch.Tensor:
        """See SGLang's `topk_ids_logical_to_physical`."""
        layer: JointLayer | None = getattr(info, OURS, None)
        return original(topk_ids, info, *rest, **named) if layer is None else layer.slots(topk_ids)

    def _served(self, metadata: Any, among: Iterable[int]) -> Iterable[tuple[int, LayerPlacement, Row]]:
        """(decoder layer, the layer as it serves, its row) of layers that have a plan."""
        only = set(among)
        for planned in self.planned.layers:
            if planned.layer_id in only:
                row = metadata.physical_to_logical_map_cpu[planned.layer_id].numpy()
                yield planned.layer_id, served_layer(planned, row, metadata.ep_size, self.dead), row

    def _follow(self, metadata: Any, layers: Iterable[int]) -> None:
        import torch

        device = metadata.physical_to_logical_map.device
        topology = self.planned.topology
        widest = min(topology.num_devices, metadata.num_physical_experts - self.planned.num_experts + 1)
        for layer_id, layer, row in self._served(metadata, layers):
            choice = _widened(rank_choice(layer, row, topology, self.rank, "joint"), widest)
            if layer_id in self.joint:
                self.joint[layer_id].refill(choice.convert(torch.from_numpy))
            else:
                on_device = choice.convert(lambda array: torch.from_numpy(np.ascontiguousarray(array)).to(device))
                self.joint[layer_id] = JointLayer(on_device, torch.zeros((), dtype=torch.int64, device=device))


def _widened(choice: RankChoice, width: int) -> RankChoice:
    """With room for `width` replicas of each expert: as many as a map of this size can have."""
    table = choice.prefill
    assert isinstance(table, JointChoiceTable)
    room = ((0, 0), (0, width - table.devices_ER.shape[1]))
    wide = replace(table, devices_ER=np.pad(table.devices_ER, room), weights_ER=np.pad(table.weights_ER, room))
    return replace(choice, prefill=wide, decode=wide)
