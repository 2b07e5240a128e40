"""A placement as engines want it: the same number of slots on every rank, each with an expert in it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grace_moe.engines.recordings.notes import several
from grace_moe.errors import MismatchError, PlacementError
from grace_moe.placement import LayerPlacement, Placement
from grace_moe.topology import Topology

MAX_SLOTS = 2**16
"""Slots of a layer in a map from outside: thousands of ranks with dozens of slots."""

IntMatrix = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class SlotMap:
    """Which expert is in which physical slot, the one object that every engine's file derives from.

    Raises:
        PlacementError: on construction, where a slot names no expert, or an expert has no slot.
    """

    physical_to_logical: IntMatrix
    """`[layers, slots]` expert in each slot, rank-major: slot j is on rank `j // slots_per_rank`."""
    layer_ids: tuple[int, ...]
    """The model's own numbers of the MoE layers."""
    num_experts: int
    num_ranks: int
    source: str = "slot map"
    """Where it came from, for messages."""
    notes: tuple[str, ...] = ()
    """What was assumed when it was read."""
    backend: str = ""
    """The all-to-all backend that it was planned for, as `plan --backend` names it; empty = none in particular."""

    def __post_init__(self) -> None:
        table = self.physical_to_logical
        if table.ndim != 2 or table.shape[0] != len(self.layer_ids) or not table.size:
            raise PlacementError(self.source, "map", f"shape {table.shape} is not [{len(self.layer_ids)} layers, slots]", _AGAIN)
        if len(set(self.layer_ids)) != len(self.layer_ids):
            raise PlacementError(self.source, "layers", "a layer is named twice", "give each MoE layer once")
        if table.shape[1] % self.num_ranks:
            raise PlacementError(
                self.source,
                "map",
                f"{table.shape[1]} slots a layer are not divisible by {self.num_ranks} ranks",
                f"use a multiple of {self.num_ranks}: every rank has the same number of slots",
            )
        if table.min() < 0 or table.max() >= self.num_experts:
            bad = int(table.max()) if table.max() >= self.num_experts else int(table.min())
            raise PlacementError(
                self.source, "map", f"a slot names expert {bad}, of 0..{self.num_experts - 1}", "check the number of experts"
            )
        for layer_id, row in zip(self.layer_ids, table, strict=True):
            missing = np.flatnonzero(np.bincount(row, minlength=self.num_experts) == 0)
            if missing.size:
                raise PlacementError(self.source, f"layer {layer_id}", f"expert {missing[0]} is in no slot", "give every expert a slot")

    @property
    def num_slots(self) -> int:
        """Physical slots of a layer."""
        return int(self.physical_to_logical.shape[1])

    @property
    def slots_per_rank(self) -> int:
        return self.num_slots // self.num_ranks

    @property
    def num_redundant(self) -> int:
        """Slots beyond one for each expert: what the engines call redundant experts."""
        return self.num_slots - self.num_experts

    def logical_replica_count(self) -> IntMatrix:
        """`[layers, experts]` slots of each expert."""
        return np.stack([np.bincount(row, minlength=self.num_experts) for row in self.physical_to_logical]).astype(np.int32)

    def logical_to_physical_map(self) -> IntMatrix:
        """`[layers, experts, most replicas]` slots of each expert, ascending; -1 beyond its count."""
        counts = self.logical_replica_count()
        table = np.full((*counts.shape, int(counts.max())), -1, dtype=np.int32)
        for layer, row in enumerate(self.physical_to_logical):
            order = np.argsort(row, kind="stable")
            first = np.concatenate([[0], np.cumsum(counts[layer])[:-1]])
            table[layer, row[order], np.arange(len(row)) - first[row[order]]] = order
        return table

    @classmethod
    def of(cls, placement: Placement) -> SlotMap:
        """The map of a placement with equal slots; the experts of a rank ascend.

        Raises:
            MismatchError: some device holds more experts than another (`equalise` mends that).
        """
        slots = placement.slots_per_device()
        if slots.min() != slots.max():
            raise MismatchError(
                f"{placement.source}: devices hold {slots.min()} to {slots.max()} experts, and engines need equally many; equalise it"
            )
        return cls(
            physical_to_logical=placement.physical_to_logical_map(),
            layer_ids=placement.layer_ids,
            num_experts=placement.num_experts,
            num_ranks=placement.topology.num_devices,
            source=placement.source,
            backend=str(placement.provenance.get("backend") or ""),
        )

    def to_placement(self, topology: Topology, *, model: str = "", engine: str = "") -> Placement:
        """The placement that the map describes, its slots sharing evenly: engines keep neither weights nor primaries.

        An expert may be in several slots of a rank, as engines' own balancers put it. It is one replica then, with the weight of all
        its slots there, and a note says how many there are.

        Raises:
            MismatchError: the topology has another number of devices.
        """
        if topology.num_devices != self.num_ranks:
            raise MismatchError(
                f"{self.source}: {self.num_ranks} ranks, but {topology.source} has {topology.num_devices} devices; give its own"
            )
        layers = []
        for layer_id, row in zip(self.layer_ids, self.physical_to_logical, strict=True):
            ranks: list[Counter[int]] = [Counter() for _ in range(self.num_experts)]  # slots of an expert on each rank, first rank first
            for slot, expert in enumerate(row.tolist()):
                ranks[expert][slot // self.slots_per_rank] += 1
            devices = tuple(tuple(held) for held in ranks)
            weights = tuple(tuple(slots / total for slots in held.values()) for held, total in ((h, h.total()) for h in ranks))
            layers.append(LayerPlacement(layer_id=layer_id, devices_of_expert=devices, replica_weights=weights))
        spare = self.physical_to_logical.size - sum(len(held) for layer in layers for held in layer.devices_of_expert)
        again = f"{several(spare, 'slot')} hold an expert that is on the rank already: its replica there weighs as much as its slots do"
        return Placement(
            topology=topology,
            num_experts=self.num_experts,
            layers=tuple(layers),
            model=model,
            provenance={"method": "import", "engine": engine, "notes": [*self.notes, *((again,) if spare else ())]},
            source=self.source,
        )


def keep_slots(new: IntMatrix, old: IntMatrix, num_ranks: int) -> IntMatrix:
    """The map `new` `[layers, slots]` with each rank's experts reordered, so that those it holds already keep their slots in `old`
    and no weights are copied within a rank. The rest fill the other slots in the order of `new`.

    Returns `new` itself where the two differ in shape.
    """
    if new.shape != old.shape:
        return new
    layers = len(new)
    now, before = new.reshape(layers, num_ranks, -1), old.reshape(layers, num_ranks, -1)
    kept = np.full_like(now, -1)
    for layer in range(layers):
        for rank in range(num_ranks):
            left = now[layer, rank].tolist()
            for slot, expert in enumerate(before[layer, rank].tolist()):
                if expert in left:
                    kept[layer, rank, slot] = expert
                    left.remove(expert)
            kept[layer, rank, kept[layer, rank] < 0] = left
    return kept.reshape(new.shape)


def filler_row(num_slots: int, num_experts: int) -> list[int]:
    """Slots of a layer that has no plan: the experts in order, again and again. No rank holds one twice, as a rank has at most
    as many slots as there are experts."""
    return [slot % num_experts for slot in range(num_slots)]


_AGAIN = "write the map again"
