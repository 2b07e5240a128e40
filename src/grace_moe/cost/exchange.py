"""What one rank exchanges in one layer, as the features that the kernels of DeepEP are fitted by (docs/cost.md#deepep)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
LOW_LATENCY, HIGH_THROUGHPUT = "deepep_low_latency", "deepep_high_throughput"
DIRECTIONS = ("dispatch", "combine")
PACKERS = 128
"""Thread blocks that pack tokens in low latency: one an expert, up to so many."""
UNCROWDED_NODES = 4
"""Beyond so many nodes DeepEP's high-throughput kernels slow down for each copy between nodes, in the table that has 8."""
DEFAULT_SMS = 20
"""DeepEP's own default for the SMs that its high-throughput kernels take."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """Of the busiest rank. All are arrays of one shape, or numbers."""

    tokens: Floats
    experts: Floats
    hidden: Floats
    nodes: Floats
    copies: Floats
    """(token, other device) copies that it sends or takes in, whichever is more."""
    far_copies: Floats
    """(token, other node) copies."""
    near_pairs: Floats
    """(token, expert) pairs to or from other devices of its node."""
    far_pairs: Floats
    """To or from devices on other nodes."""
    sms: Floats

    def __getitem__(self, rows: npt.NDArray[Any]) -> Exchange:
        return Exchange(**{name: np.broadcast_to(value, np.shape(self.tokens))[rows] for name, value in vars(self).items()})


def uniform_exchange(
    *, tokens: Floats, top_k: Floats, experts: Floats, hidden: Floats, nodes: Floats, devices_per_node: Floats, sms: Floats
) -> Exchange:
    """What tables of DeepEP measure: every token's k experts are drawn evenly over all ranks, `tokens` a rank."""
    ranks = nodes * devices_per_node
    return Exchange(
        tokens=tokens,
        experts=experts,
        hidden=hidden,
        nodes=nodes,
        copies=tokens * (ranks - 1) * (1 - (1 - 1 / ranks) ** top_k),
        far_copies=tokens * (nodes - 1) * (1 - (1 - 1 / nodes) ** top_k),
        near_pairs=tokens * top_k * (devices_per_node - 1) / ranks,
        far_pairs=tokens * top_k * (nodes - 1) / nodes,
        sms=sms,
    )


Feature = Callable[[Exchange], Floats]
_OF_A_CALL: dict[str, Feature] = {
    "call": lambda x: np.ones_like(x.tokens, dtype=float),
    "expert": lambda x: x.experts * 1.0,
    "element": lambda x: x.hidden * 1.0,
    "doubling_of_nodes": lambda x: np.log2(x.nodes),
}
FEATURES: Mapping[str, Mapping[str, Feature]] = {
    LOW_LATENCY: {
        **_OF_A_CALL,
        "near_pair_element": lambda x: x.near_pairs * x.hidden,
        "far_pair_element": lambda x: x.far_pairs * x.hidden,
        "packed_token": lambda x: x.tokens / np.minimum(x.experts, PACKERS),
        "packed_token_element": lambda x: x.tokens * x.hidden / np.minimum(x.experts, PACKERS),
    },
    HIGH_THROUGHPUT: {
        **_OF_A_CALL,
        "token_sm": lambda x: x.tokens / x.sms,
        "token_element_sm": lambda x: x.tokens * x.hidden / x.sms,
        "copy_sm": lambda x: x.copies / x.sms,
        "copy_element_sm": lambda x: x.copies * x.hidden / x.sms,
        "copy_element": lambda x: x.copies * x.hidden,
        "relayed_element_sm": lambda x: np.where(x.nodes > 1, x.tokens + x.far_copies, 0.0) * x.hidden / x.sms,
        "far_element": lambda x: x.far_copies * x.hidden,
        "crowded_far_element": lambda x: x.far_copies * x.hidden * np.log2(np.maximum(1, x.nodes / UNCROWDED_NODES)),
    },
}
"""What a kernel's time is a sum of, by backend; each has a coefficient in seconds."""
NEAR_FEATURES = ("near_pair_element", "copy_element")
FAR_FEATURES = ("far_pair_element", "far_element", "crowded_far_element")
"""Those that are bytes over a link."""
AT_ONCE: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    LOW_LATENCY: ((), ()),
    HIGH_THROUGHPUT: (
        ("token_sm", "token_element_sm", "copy_sm", "copy_element_sm", "relayed_element_sm"),
        ("far_element", "crowded_far_element"),
    ),
}
"""Two groups of features that work at once: what the SMs do, and bytes between nodes. The slower counts; all others are added."""


def features(backend: str, exchange: Exchange) -> dict[str, Floats]:
    """Each feature of a backend, of the exchange's shape."""
    return {name: feature(exchange) for name, feature in FEATURES[backend].items()}


def added_up(backend: str, parts: Mapping[str, Floats]) -> Floats:
    """Seconds of an exchange, from those of each feature."""
    sms, links = (sum((parts[name] for name in group if name in parts), np.zeros(())) for group in AT_ONCE[backend])
    alone = (values for name, values in parts.items() if not any(name in group for group in AT_ONCE[backend]))
    return np.asarray(sum(alone, np.maximum(sms, links)), dtype=float)


@dataclass(frozen=True, kw_only=True)
class TransportKernel:
    """A kernel of DeepEP in one direction."""

    backend: str
    direction: str
    coefficients: Mapping[str, float]
    """Seconds by feature; one that is not there is 0."""
    nodes: tuple[int, ...] = (1,)
    """Numbers of nodes that it was fitted on."""
    near_bytes_per_s: float = 450e9
    """Bandwidth of the link inside nodes that it was measured over, and"""
    far_bytes_per_s: float = 50e9
    """of the one between nodes: over others, what it takes for each byte is in proportion."""
    machine: str = ""
    version: str = ""

    def over(self, near_bytes_per_s: float, far_bytes_per_s: float) -> TransportKernel:
        """The kernel over links of other bandwidths."""
        slower = dict.fromkeys(NEAR_FEATURES, self.near_bytes_per_s / near_bytes_per_s)
        slower |= dict.fromkeys(FAR_FEATURES, self.far_bytes_per_s / far_bytes_per_s)
        coefficients = {name: value * slower.get(name, 1.0) for name, value in self.coefficients.items()}
        return replace(self, coefficients=coefficients, near_bytes_per_s=near_bytes_per_s, far_bytes_per_s=far_bytes_per_s)

    def seconds(self, exchange: Exchange) -> Floats:
        """Time of an exchange, of its shape."""
        found = features(self.backend, exchange)
        return added_up(self.backend, {name: self.coefficients.get(name, 0.0) * values for name, values in found.items()})

    def to_dict(self) -> dict[str, Any]:
        """JSON for a topology's calibration."""
        return {**vars(self), "coefficients": dict(self.coefficients), "nodes": list(self.nodes)}
