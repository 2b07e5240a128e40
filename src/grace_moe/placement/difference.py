"""What must move from one placement to another: the expert copies that each device has to load."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grace_moe.errors import MismatchError
from grace_moe.placement.layer import LayerPlacement, held_by_devices
from grace_moe.placement.model import Placement
from grace_moe.topology import Topology


@dataclass(frozen=True, kw_only=True)
class PlacementDifference:
    """Copies that the new placement holds where the old one does not."""

    loads: npt.NDArray[np.int64]
    """`[layers, devices]` experts that each device has to load."""
    from_other_nodes: npt.NDArray[np.int64]
    """`[layers, devices]` those of them that no device of its node held."""
    copies: int
    """Copies that the new placement holds in all."""

    @property
    def moved(self) -> int:
        """Copies to load, all layers and devices together."""
        return int(self.loads.sum())

    def bytes_to_load(self, expert_bytes: int) -> int:
        """Bytes that all devices load together.

        Args:
            expert_bytes: memory of one expert of one layer.
        """
        return self.moved * expert_bytes


def difference(new: Placement, old: Placement) -> PlacementDifference:
    """What devices must load to go from `old` to `new`; devices are the same by number.

    Raises:
        MismatchError: the placements are of different models or shapes of topology.
    """
    for field, ours, theirs in (
        ("topology", new.topology.shape, old.topology.shape),
        ("num_experts", new.num_experts, old.num_experts),
        ("layers", list(new.layer_ids), list(old.layer_ids)),
    ):
        if ours != theirs:
            raise MismatchError(
                f"{new.source}: {field}: {ours}, but {old.source} has {theirs}; give two placements of one model and topology"
            )
    loads = np.zeros((len(new.layers), new.topology.num_devices), np.int64)
    from_afar = np.zeros_like(loads)
    for index, (after, before) in enumerate(zip(new.layers, old.layers, strict=True)):
        loads[index], from_afar[index] = loads_of_layer(after, before, new.topology)
    copies = int(new.slots_per_device().sum())
    return PlacementDifference(loads=loads, from_other_nodes=from_afar, copies=copies)


def loads_of_layer(new: LayerPlacement, old: LayerPlacement, topology: Topology) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """`[D]` experts of a layer that each device has to load, and `[D]` those of them that no device of its node held."""
    node = topology.node_of_device
    held = held_by_devices(old, len(node))
    fresh = held_by_devices(new, len(node)) & ~held
    near = np.stack([held[node == n].any(axis=0) for n in range(topology.num_nodes)])
    return fresh.sum(axis=1), (fresh & ~near[node]).sum(axis=1)
