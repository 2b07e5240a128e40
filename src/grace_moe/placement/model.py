"""Placement: which devices hold which expert, and how its tokens are shared among them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.topology import Topology

REPLICA_CHOICES = ("tar", "wrr", "joint")
"""Policies for picking a replica: topology-aware and weighted round robin (METHOD.md, Online phase), and ours: all of a
token's replicas together, so that it visits the fewest nodes."""

MAX_NODE_PRICE = 15.0


@dataclass(frozen=True, kw_only=True)
class LayerPlacement:
    """One MoE layer."""

    layer_id: int
    """The model's own number of the layer."""
    devices_of_expert: tuple[tuple[int, ...], ...]
    """Per expert, the devices that hold it; the first is the primary."""
    replica_weights: tuple[tuple[float, ...], ...]
    """Per expert, the polling weight of each of its replicas; they sum to 1."""
    decode_weights: tuple[tuple[float, ...], ...] = ()
    """Of the same shape: the polling weights in decode steps. A replica of weight 0 is not used there, wherever the token is. Empty =
    decode chooses as prefill does."""
    node_prices: tuple[float, ...] = ()
    """Per node, how much joint choice avoids it among sets of nodes that serve a token equally well, in spans of the tie's
    hash; up to `MAX_NODE_PRICE`. Empty = all alike."""
    source_costs: tuple[tuple[float, ...], ...] = ()
    """Per expert and node, the copies that a token which chose the expert costs from that node, over the mean over nodes: tells
    a front-end where to send a request (`planning.request_placement`). Empty = unknown."""
    replica_choice: str = ""
    """One of `REPLICA_CHOICES` where this layer's differs from the placement's; empty = the placement's."""

    def in_decode(self) -> LayerPlacement:
        """The layer as decode steps see it: the replicas that they use, by their weights there."""
        if not self.decode_weights:
            return self
        used = [
            [(device, weight) for device, weight in zip(devices, weights, strict=True) if weight > 0]
            for devices, weights in zip(self.devices_of_expert, self.decode_weights, strict=True)
        ]
        return replace(
            self,
            devices_of_expert=tuple(tuple(device for device, _ in row) for row in used),
            replica_weights=tuple(tuple(weight for _, weight in row) for row in used),
            decode_weights=(),
        )


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A plan for every MoE layer of a model on a topology.

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
        from grace_moe.placement.validation import check

        check(self)

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
        return np.array([[len(e) for e in self.experts_of_device(i)] for i in range(len(self.layers))], dtype=np.int64)

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
        from grace_moe.placement.store import load_placement

        return load_placement(Path(path))

    def save(self, path: str | Path) -> None:
        """Write the placement whole, or nothing."""
        from grace_moe.placement.store import save_placement

        save_placement(self, Path(path))


def even_weights(devices_of_expert: tuple[tuple[int, ...], ...]) -> tuple[tuple[float, ...], ...]:
    """Equal polling weights."""
    return tuple(tuple(1.0 / len(devices) for _ in devices) for devices in devices_of_expert)
