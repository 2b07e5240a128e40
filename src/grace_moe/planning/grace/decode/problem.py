"""What decode's replicas of one layer are chosen by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grace_moe.cost.sent import Sends
from grace_moe.placement import LayerPlacement
from grace_moe.topology import Topology

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class DecodeBounds:
    """What fewer active experts may cost, and at which size of batch they are counted."""

    copies: float
    """Most that copies between nodes may rise, over all layers, as a share of them."""
    load: float
    """Most that the busiest device's pairs (over its speed) may rise in a layer, as a share of them."""
    batch: int
    """Tokens of a decode batch over all devices."""


@dataclass(frozen=True, kw_only=True)
class DecodeProblem:
    """One layer's decode batches, and what may be given up."""

    layer: LayerPlacement
    topology: Topology
    policy: str
    """Of `placement.REPLICA_CHOICES`, where the layer has none of its own."""
    ids: Ints
    """`[M * B, k]` choices of M batches of B tokens, batch by batch; -1 = none."""
    sources: Ints
    """`[M * B]` source device of each token."""
    bounds: DecodeBounds
    """Of batches of B tokens."""
    sends: Sends = "nodes"
    """What of a token counts as copies."""
    seed: int
