"""The maps that an engine was given of late: what the experts of its slots came from, once it says which map serves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.engines.slot_map import SlotMap
from grace_moe.placement import LayerPlacement, Placement

LATELY = 2
"""Maps that are remembered: an engine that moves layer by layer may stop between two."""


@dataclass(frozen=True, kw_only=True)
class LiveMap:
    """What an engine is to load: which expert is in which slot, and the placement that it came from."""

    slots: SlotMap
    placement: Placement


@dataclass
class GivenMaps:
    """The last maps, the latest first."""

    latest: list[LiveMap] = field(default_factory=list)

    def remember(self, given: LiveMap) -> None:
        """The engine gets this map."""
        if not self.latest or self.latest[0].placement.layers != given.placement.layers:
            self.latest[:] = [given, *self.latest[: LATELY - 1]]

    def like(self, planned: Placement) -> Placement | None:
        """The latest map of as many experts, devices and slots; None where there is none."""
        for given in self.latest:
            found = given.placement
            same = (found.num_experts, len(found.layers), found.topology) == (planned.num_experts, len(planned.layers), planned.topology)
            if same and (found.slots_per_device() == planned.slots_per_device()).all():
                return found
        return None

    def layer(self, index: int, row: npt.NDArray[np.integer[Any]]) -> LayerPlacement | None:
        """The layer that a row `[slots]` of an engine's map came from, in whatever order each rank has its slots; None where it is
        of no map that was given."""
        for given in self.latest:
            if index < len(given.placement.layers) and given.slots.num_slots == len(row):
                held = np.sort(np.asarray(row).reshape(given.slots.num_ranks, -1), axis=1).ravel()
                if (held == given.slots.physical_to_logical[index]).all():
                    return given.placement.layers[index]
        return None
