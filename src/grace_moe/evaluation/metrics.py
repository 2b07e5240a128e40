"""The metrics of a replay (docs/metrics.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.cost.layer_time import LayerTraffic
from grace_moe.cost.sent import sends_of
from grace_moe.trace import DECODE, PREFILL

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Copies:
    """`[layers]` copies of tokens over the whole trace, under each kind of dispatch."""

    cross_node: Ints
    """(token, other node) copies: hierarchical, between nodes."""
    intra_node: Ints
    """Device-to-device copies inside nodes, from sources and from ingress devices: hierarchical, inside nodes."""
    flat: Ints
    """(token, other device) copies."""
    flat_cross_node: Ints
    """Those of them to devices on other nodes."""
    pairs: Ints
    """(token, expert) pairs sent to another device."""
    pairs_cross_node: Ints
    """(token, expert) pairs sent to another node."""


@dataclass(frozen=True, kw_only=True)
class PassCopies:
    """`[layers, passes]` copies to other nodes in each forward pass."""

    cross_node: Ints
    """As `Copies.cross_node`."""
    flat_cross_node: Ints
    """As `Copies.flat_cross_node`."""


@dataclass(frozen=True, kw_only=True)
class PhaseCounts:
    """What the tokens of one phase cost."""

    num_tokens: int
    cross_node: Ints
    """`[layers]` (token, other node) copies."""
    device_load: Floats
    """`[layers, devices]` pairs computed, over the device's relative speed."""

    @property
    def recorded(self) -> npt.NDArray[np.bool_]:
        """`[layers]` whether the phase has any pair of the layer."""
        found: npt.NDArray[np.bool_] = np.any(self.device_load, axis=1)
        return found

    @property
    def cross_node_copies(self) -> float:
        return _mean(self.cross_node, self.recorded) / max(1, self.num_tokens)

    @property
    def load_max_over_mean(self) -> float:
        return _max_over_mean(self.device_load)


@dataclass(frozen=True, kw_only=True)
class Evaluation(LayerTraffic):
    """What a placement costs on a trace: counts by layer, and as properties the metrics.

    A metric is a mean over the layers that were recorded; `num_tokens` are those that chose an expert in one of them.
    """

    num_experts: int
    slots: Ints
    """`[layers, devices]` experts held."""
    copies: Copies
    phases: tuple[PhaseCounts, PhaseCounts] | None = None
    """Prefill's part and decode's; None unless the trace has tokens of both."""
    active_experts: Floats | None = None
    """`[layers]` most distinct experts active on a device, mean over decode batches, 0 where none was recorded; None without decode."""
    batch_balance: Floats | None = None
    """`[layers]` load of the busiest device over the mean in a batch, mean over batches, 0 without any; None unless asked for."""
    by_pass: PassCopies | None = None
    """None unless passes were given."""

    def _per_token(self, copies: Ints) -> float:
        return _mean(copies, self.recorded) / max(1, self.num_tokens)

    @property
    def cross_node_copies(self) -> float:
        return self._per_token(self.copies.cross_node)

    @property
    def intra_node_copies(self) -> float:
        return self._per_token(self.copies.intra_node)

    @property
    def flat_copies(self) -> float:
        return self._per_token(self.copies.flat)

    @property
    def flat_cross_node_copies(self) -> float:
        return self._per_token(self.copies.flat_cross_node)

    @property
    def pair_copies(self) -> float:
        return self._per_token(self.copies.pairs)

    @property
    def pair_cross_node_copies(self) -> float:
        return self._per_token(self.copies.pairs_cross_node)

    def backend_copies(self, backend: str) -> float:
        """What the backend sends between nodes, per token. Raises UsageError where its name is unknown."""
        sends = sends_of(backend)
        if sends == "everything":
            return float(len(self.devices_per_node) - 1)
        return {"nodes": self.cross_node_copies, "devices": self.flat_cross_node_copies, "pairs": self.pair_cross_node_copies}[sends]

    @property
    def load_max_over_mean(self) -> float:
        return _max_over_mean(self.device_load)

    @property
    def load_std_over_mean(self) -> float:
        load = self.device_load[self.recorded]
        return _mean(load.std(axis=1) / load.mean(axis=1))

    @property
    def idle_fraction(self) -> float:
        load = self.device_load[self.recorded]
        mean = load.mean(axis=1)
        return _mean(1 - mean / np.maximum(load.max(axis=1), mean))

    @property
    def active_experts_max(self) -> float | None:
        return None if self.active_experts is None else _mean(self.active_experts, self.active_experts > 0)

    @property
    def batch_load_max_over_mean(self) -> float | None:
        return None if self.batch_balance is None else _mean(self.batch_balance, self.batch_balance > 0)

    @property
    def prefill_load_max_over_mean(self) -> float | None:
        return None if self.phases is None else self.phases[PREFILL].load_max_over_mean

    @property
    def decode_load_max_over_mean(self) -> float | None:
        return None if self.phases is None else self.phases[DECODE].load_max_over_mean

    @property
    def prefill_cross_node_copies(self) -> float | None:
        return None if self.phases is None else self.phases[PREFILL].cross_node_copies

    @property
    def decode_cross_node_copies(self) -> float | None:
        return None if self.phases is None else self.phases[DECODE].cross_node_copies

    @property
    def slots_total_over_experts(self) -> float:
        return float(self.slots.sum(axis=1).mean() / self.num_experts)

    @property
    def slots_max_per_device(self) -> int:
        return int(self.slots.max())

    def to_dict(self) -> dict[str, Any]:
        """The metrics by the names of docs/metrics.md."""
        return {name: getattr(self, name) for name in METRICS}


METRICS = (
    "cross_node_copies",
    "intra_node_copies",
    "flat_copies",
    "flat_cross_node_copies",
    "pair_copies",
    "pair_cross_node_copies",
    "load_max_over_mean",
    "load_std_over_mean",
    "idle_fraction",
    "batch_load_max_over_mean",
    "active_experts_max",
    "prefill_cross_node_copies",
    "decode_cross_node_copies",
    "prefill_load_max_over_mean",
    "decode_load_max_over_mean",
    "slots_total_over_experts",
    "slots_max_per_device",
)
"""Names of the numbers that `Evaluation.to_dict` gives."""


def _max_over_mean(device_load: Floats) -> float:
    load = device_load[device_load.any(axis=1)]
    return _mean(load.max(axis=1) / load.mean(axis=1))


def _mean(of_layers: npt.NDArray[Any], recorded: npt.NDArray[np.bool_] | None = None) -> float:
    """Mean over the layers that were recorded (None = all of these); 0 without any."""
    values = of_layers if recorded is None else of_layers[recorded]
    return float(values.mean()) if len(values) else 0.0
