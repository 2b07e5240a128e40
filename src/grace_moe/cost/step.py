"""How long a MoE layer takes, from what it sends and computes: dispatch, compute, combine, waiting and overlap (docs/cost.md)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grace_moe.cost.backends import BACKENDS, Cluster, exchange_seconds
from grace_moe.cost.compute import device_seconds, expert_seconds
from grace_moe.cost.flows import Flows
from grace_moe.cost.hardware import PHASES, expert_kernel, hardware_of
from grace_moe.cost.layer_time import BATCH_TOKENS, LayerTime
from grace_moe.cost.sizes import OLMOE, ModelSizes
from grace_moe.errors import UsageError
from grace_moe.topology import Topology

Floats = npt.NDArray[np.float64]
DECODE_TOKENS = 1024
"""Of a decode batch over all devices, unless said otherwise."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a model is served: what turns copies and pairs into seconds.

    Raises:
        UsageError: on construction, if one is unknown or out of range.
    """

    model: ModelSizes = OLMOE
    phase: str = "prefill"
    batch_tokens: int | None = None
    """Over all devices; None = 32,768 in prefill and 1,024 in decode."""
    backend: str = "hierarchical"
    overlap: float = 0.0
    """Share of dispatch and combine that goes on while experts compute, as far as there is computing: 0 in turn, 1 all that fits."""

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise UsageError(f"phase {self.phase!r} is unknown; use {' or '.join(PHASES)}")
        if self.backend not in BACKENDS:
            raise UsageError(f"backend {self.backend!r} is unknown; use one of {', '.join(BACKENDS)}")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise UsageError(f"batch {self.batch_tokens} is no number of tokens; give 1 or more")
        if not 0 <= self.overlap <= 1:
            raise UsageError(f"overlap {self.overlap} is not a share from 0 to 1")

    @property
    def batch(self) -> int:
        """Tokens of a batch."""
        if self.batch_tokens is not None:
            return self.batch_tokens
        return BATCH_TOKENS if self.phase == "prefill" else DECODE_TOKENS

    def told(self, topology: Topology) -> str:
        """What was assumed, in a line."""
        hardware = hardware_of(topology)
        return (
            f"{self.phase} of {self.batch:,} tokens of {self.model.source} over {self.backend}; {hardware.name.upper()}: {hardware.source}"
        )


def layer_seconds(flows: Flows, topology: Topology, setting: Setting) -> dict[str, Floats]:
    """`[layers]` seconds of each part of a layer, 0 where nothing was recorded: `dispatch`, `compute` (mean over devices),
    `combine`, `idle` (what the slowest device adds), and `hidden` (what overlap takes off)."""
    cluster = Cluster.of(topology, setting.model)
    scale = setting.batch / max(1.0, flows.num_tokens)
    dispatch, combine = exchange_seconds(setting.backend, cluster, flows, scale)
    kernel = expert_kernel(hardware_of(topology), setting.phase, setting.model)
    pairs = flows.slot_pairs * scale
    by_device = flows.pairs_of_device(expert_seconds(kernel, setting.model, pairs))
    computed = device_seconds(kernel, by_device, flows.pairs_of_device() > 0) / topology.relative_speed
    compute, busiest = computed.mean(axis=1), computed.max(axis=1)
    hidden = setting.overlap * np.minimum(dispatch + combine, busiest)
    return {"dispatch": dispatch, "compute": compute, "combine": combine, "idle": busiest - compute, "hidden": hidden}


def step_time(flows: Flows, topology: Topology, setting: Setting) -> LayerTime:
    """Seconds of one layer, mean over the layers that were recorded."""
    recorded = flows.recorded
    if not recorded.any():
        return LayerTime(dispatch=0.0, compute=0.0, combine=0.0, idle=0.0)
    return LayerTime(**{name: float(values[recorded].mean()) for name, values in layer_seconds(flows, topology, setting).items()})
