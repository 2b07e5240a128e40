"""Modelled time of one MoE layer: alpha-beta links and expert compute.

For a batch of T tokens, of which each device serves T / D:

- dispatch = cross-node stage + intra-node stage; each is `latency + bytes of a device / bandwidth`, with the copies shared
  evenly by the devices (replay gives totals; links that carry more than the mean are not modelled);
- combine = the same copies back;
- compute of a device = its pairs / its rate; the layer waits for the slowest, and the rest is idle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from grace_moe.evaluation.replay import Evaluation
from grace_moe.topology import Link, Topology

BATCH_TOKENS = 32_768
"""Tokens of a batch over all devices: the paper's prefill of (256, 128)."""
ROW_BYTES = 4096
"""A hidden state of 2048 elements in bf16, as OLMoE's."""
PAIRS_PER_SECOND = 8e6
"""Pairs a device of relative speed 1 computes: 12.6 MFLOP each (OLMoE) at 100 TFLOP/s."""


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """Seconds of one layer, mean over the layers."""

    dispatch: float
    compute: float
    """Mean over devices."""
    combine: float
    idle: float
    """What the slowest device adds to the mean."""

    @property
    def total(self) -> float:
        return self.dispatch + self.compute + self.combine + self.idle

    def to_dict(self) -> dict[str, float]:
        """By DESIGN.md's names."""
        return {
            "modelled_layer_time": self.total,
            "modelled_dispatch_time": self.dispatch,
            "modelled_compute_time": self.compute,
            "modelled_combine_time": self.combine,
            "modelled_idle_time": self.idle,
        }


def modelled_layer_time(
    evaluation: Evaluation,
    topology: Topology,
    *,
    batch_tokens: int = BATCH_TOKENS,
    row_bytes: int = ROW_BYTES,
    pairs_per_second: float = PAIRS_PER_SECOND,
) -> LayerTime:
    """Time of one layer with hierarchical dispatch (module docstring).

    Args:
        batch_tokens: tokens over all devices.
        row_bytes: bytes of one copy of a token.
        pairs_per_second: of a device of relative speed 1.
    """
    per_device = batch_tokens / topology.num_devices * row_bytes
    cross = _transfer(topology.cross_node, evaluation.cross_node_copies * per_device)
    intra = _transfer(topology.intra_node, evaluation.intra_node_copies * per_device)
    load = evaluation.device_load * (batch_tokens / max(1, evaluation.num_tokens)) / pairs_per_second
    compute = float(load.mean())
    idle = float(np.mean(load.max(axis=1))) - compute
    return LayerTime(dispatch=cross + intra, compute=compute, combine=cross + intra, idle=idle)


def _transfer(link: Link, size: float) -> float:
    return link.latency_s + size / link.bandwidth_bytes_per_s if size else 0.0
