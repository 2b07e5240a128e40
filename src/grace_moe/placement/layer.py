"""The placement of one MoE layer: its replicas and their weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import numpy.typing as npt

REPLICA_CHOICES = ("tar", "wrr", "joint")
"""Policies for picking a replica: topology-aware and weighted round robin (docs/method.md#online-phase), and ours: all of a
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
    a front-end where to send a request (`choice.place_requests`). Empty = unknown."""
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


def even_weights(devices_of_expert: tuple[tuple[int, ...], ...]) -> tuple[tuple[float, ...], ...]:
    """Equal polling weights."""
    return tuple((1.0 / len(devices),) * len(devices) for devices in devices_of_expert)


def held_by_devices(layer: LayerPlacement, devices: int) -> npt.NDArray[np.bool_]:
    """`[D, E]` which device holds which expert."""
    held = np.zeros((devices, len(layer.devices_of_expert)), bool)
    experts = np.repeat(np.arange(held.shape[1]), [len(row) for row in layer.devices_of_expert])
    held[np.fromiter(chain.from_iterable(layer.devices_of_expert), np.int64), experts] = True
    return held
