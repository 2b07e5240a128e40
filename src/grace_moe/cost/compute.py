"""How long a device computes its experts: a roofline for each active expert (docs/cost.md#compute)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.cost.sizes import ModelSizes

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ExpertKernel:
    """A grouped kernel: `max(floor, launch + sum over active experts of max(read, pairs * pair))`.

    An expert with pairs has its weights read once (`expert_s + bytes * byte_s`); its pairs, rounded up to tiles, are computed
    (`pair_s + flops * flop_s` each). The slower of both is what it takes.
    """

    phase: str
    """`prefill`, or `decode`."""
    launch_s: float
    floor_s: float = 0.0
    """What it takes at the least: the host's work, which the device's hides behind."""
    expert_s: float = 0.0
    byte_s: float
    pair_s: float = 0.0
    flop_s: float
    tile_rows: int = 1
    machine: str = ""
    version: str = ""
    name: str = ""
    dtype: str = ""

    def read_s(self, model: ModelSizes) -> float:
        """Seconds that the weights of one active expert take to read."""
        return self.expert_s + model.expert_bytes * self.byte_s

    def compute_s(self, model: ModelSizes) -> float:
        """Seconds that one pair takes to compute, once the weights are there."""
        return self.pair_s + model.pair_flops * self.flop_s

    def to_dict(self) -> dict[str, Any]:
        """JSON for a topology's calibration."""
        return dict(vars(self))


def expert_seconds(kernel: ExpertKernel, model: ModelSizes, pairs: Floats) -> Floats:
    """Seconds by expert, without launch and floor.

    Args:
        pairs: `[...]` pairs expected of each expert on a device. Where less than one is expected, the expert is active in some batches
            only: a Poisson count is assumed, so that it is active with probability `1 - exp(-pairs)`.
    """
    read, compute = kernel.read_s(model), kernel.compute_s(model)
    active = -np.expm1(-pairs)
    rows = np.where(active > 0, pairs / np.where(active > 0, active, 1.0), 0.0)
    return active * np.maximum(read, tiled(rows, kernel.tile_rows) * compute)


def tiled(pairs: Floats, tile_rows: int) -> Floats:
    """Rows that tiles have for so many pairs: a last tile is computed whole; on average it is half empty."""
    return pairs if tile_rows == 1 else np.where(pairs > 0, np.maximum(tile_rows, pairs + (tile_rows - 1) / 2), 0.0)


def device_seconds(kernel: ExpertKernel, by_device: Floats, has_pairs: npt.NDArray[np.bool_]) -> Floats:
    """Seconds of devices.

    Args:
        by_device: sums over a device's experts of `expert_seconds`.
        has_pairs: whether it has any; a device without launches nothing.
    """
    return np.where(has_pairs, np.maximum(kernel.floor_s, kernel.launch_s + by_device), 0.0)
