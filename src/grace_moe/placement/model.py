"""Placement: which devices hold which expert, and how its tokens are shared among them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.placement.layer import LayerPlacement
from grace_moe.placement.store import read_fields, write_fields
from grace_moe.placement.validation import check_invariants
from grace_moe.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A plan for every MoE layer of a model on a topology.

    >>> from grace_moe.placement import LayerPlacement, even_weights
    >>> devices = ((0,), (1,), (0, 1))  # expert 2 has its primary on device 0 and a replica on device 1
    >>> layer = LayerPlacement(layer_id=0, devices_of_expert=devices, replica_weights=even_weights(devices))
    >>> placement = Placement(topology=Topology.parse("2x1"), num_experts=3, layers=(layer,))
    >>> placement.experts_of_device(0)
    ((0, 2), (1, 2))

    Raises:
        PlacementError: on construction, naming the invariant that is broken (see `placement.validation`).
    """

    topology: Topology
    num_experts: int
    layers: tuple[LayerPlacement, ...]
    model: str = ""
    replica_choice: str = "tar"
    """How a token's replica is picked: one of `REPLICA_CHOICES`."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Method, options, trace digest, seed and version that made it."""
    source: str = field(default="placement", compare=False)
    """Where it came from, for messages."""

    def __post_init__(self) -> None:
        check_invariants(
            self.layers, num_experts=self.num_experts, topology=self.topology, replica_choice=self.replica_choice, source=self.source
        )

    @property
    def layer_ids(self) -> tuple[int, ...]:
        return tuple(layer.layer_id for layer in self.layers)

    def experts_of_device(self, layer: int) -> tuple[tuple[int, ...], ...]:
        """Per device, the experts in its slots, in ascending order. `layer` is an index, not a layer id."""
        slots: list[list[int]] = [[] for _ in range(self.topology.num_devices)]
        for expert, devices in enumerate(self.layers[layer].devices_of_expert):
            for device in devices:
                slots[device].append(expert)
        return tuple(tuple(experts) for experts in slots)

    def slots_per_device(self) -> npt.NDArray[np.int64]:
        """`[layers, devices]` experts that each device holds."""
        devices = self.topology.num_devices
        return np.stack([np.bincount(list(chain.from_iterable(layer.devices_of_expert)), minlength=devices) for layer in self.layers])

    @property
    def slots_total_over_experts(self) -> float:
        """Copies held, over experts, mean over layers; 1.0 = no replicas."""
        return float(self.slots_per_device().sum(axis=1).mean() / self.num_experts)

    def physical_to_logical_map(self) -> npt.NDArray[np.int32]:
        """`[layers, slots]` expert in each slot, rank-major, -1 = empty: the engines' map, padded to equal slots."""
        width = int(self.slots_per_device().max())
        table = np.full((len(self.layers), self.topology.num_devices, width), -1, dtype=np.int32)
        for layer in range(len(self.layers)):
            for device, experts in enumerate(self.experts_of_device(layer)):
                table[layer, device, : len(experts)] = experts
        return table.reshape(len(self.layers), -1)

    @classmethod
    def load(cls, path: str | Path) -> Placement:
        """Read a `grace-moe.placement` file. Raises PlacementError with file, field and mend."""
        return cls(**read_fields(Path(path)))

    def save(self, path: str | Path) -> None:
        """Write the placement whole, or nothing."""
        write_fields({f.name: getattr(self, f.name) for f in fields(self)}, Path(path))
