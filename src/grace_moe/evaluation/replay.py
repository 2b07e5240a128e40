"""Replay a trace through a placement: copies between nodes and devices, loads, memory (DESIGN.md, Words and numbers)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.errors import MismatchError
from grace_moe.placement import Placement
from grace_moe.planning import ChoiceTable, choice_tables
from grace_moe.topology import Topology
from grace_moe.trace import DECODE, RoutingTrace

_CHUNK_CELLS = 2**20
"""(token, device) cells replayed at once; bounds memory."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a placement costs on a trace. Arrays are per layer; the properties of the same names are their means.

    Copies are counted over the whole trace; the means are per token.
    """

    num_tokens: int
    cross_node: Ints
    """`[layers]` (token, other node) copies."""
    intra_node: Ints
    """`[layers]` device-to-device copies inside nodes: from sources, and from ingress devices."""
    flat: Ints
    """`[layers]` (token, other device) copies."""
    flat_cross_node: Ints
    """`[layers]` those of them to devices on other nodes."""
    pairs: Ints
    """`[layers]` (token, expert) pairs sent to another device."""
    pairs_cross_node: Ints
    """`[layers]` (token, expert) pairs sent to another node."""
    device_load: Floats
    """`[layers, devices]` pairs computed, over the device's relative speed."""
    active_experts: Floats | None
    """`[layers]` most distinct experts active on a device, mean over decode batches; None without decode tokens."""
    slots: Ints
    """`[layers, devices]` experts held."""
    num_experts: int
    devices_per_node: tuple[int, ...]

    def _per_token(self, copies: Ints) -> float:
        return float(copies.mean() / max(1, self.num_tokens))

    @property
    def cross_node_copies(self) -> float:
        return self._per_token(self.cross_node)

    @property
    def intra_node_copies(self) -> float:
        return self._per_token(self.intra_node)

    @property
    def flat_copies(self) -> float:
        return self._per_token(self.flat)

    @property
    def flat_cross_node_copies(self) -> float:
        return self._per_token(self.flat_cross_node)

    @property
    def pair_copies(self) -> float:
        return self._per_token(self.pairs)

    @property
    def pair_cross_node_copies(self) -> float:
        return self._per_token(self.pairs_cross_node)

    @property
    def load_max_over_mean(self) -> float:
        return float((self.device_load.max(axis=1) / self._mean_load).mean())

    @property
    def load_std_over_mean(self) -> float:
        return float((self.device_load.std(axis=1) / self._mean_load).mean())

    @property
    def idle_fraction(self) -> float:
        return float((1 - self._mean_load / np.maximum(self.device_load.max(axis=1), 1e-12)).mean())

    @property
    def active_experts_max(self) -> float | None:
        return None if self.active_experts is None else float(self.active_experts.mean())

    @property
    def slots_total_over_experts(self) -> float:
        return float(self.slots.sum(axis=1).mean() / self.num_experts)

    @property
    def slots_max_per_device(self) -> int:
        return int(self.slots.max())

    @property
    def _mean_load(self) -> Floats:
        means: Floats = np.maximum(self.device_load.mean(axis=1), 1e-12)
        return means

    def to_dict(self) -> dict[str, Any]:
        """The metrics by DESIGN.md's names."""
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
    "active_experts_max",
    "slots_total_over_experts",
    "slots_max_per_device",
)
"""Names of the numbers that `Evaluation.to_dict` gives."""


def evaluate(placement: Placement, trace: RoutingTrace, topology: Topology | None = None, *, seed: int = 0) -> Evaluation:
    """Replay `trace` through `placement`; requests are dealt round-robin over the devices.

    Args:
        topology: links and speeds to judge by, where they are not the placement's own; the shape must be the same.
        seed: of the replica choice.

    Raises:
        MismatchError: trace, placement and topology don't belong together.
    """
    topology = placement.topology if topology is None else topology
    _check(placement, trace, topology)
    source = sources(trace, topology.num_devices)
    layers = [
        _replay_layer(table, layer_id, trace.topk_ids[:, index], source, topology, seed)
        for index, (layer_id, table) in enumerate(zip(placement.layer_ids, choice_tables(placement), strict=True))
    ]
    totals = np.array([layer[0] for layer in layers], dtype=np.int64).reshape(len(layers), 6)
    steps = decode_steps(trace)
    active = None
    if steps is not None:
        active = np.array(
            [_active_experts(trace.topk_ids[:, i], devices, steps, topology.num_devices) for i, (_, _, devices) in enumerate(layers)]
        )
    return Evaluation(
        num_tokens=trace.num_tokens,
        cross_node=totals[:, 0],
        intra_node=totals[:, 1],
        flat=totals[:, 2],
        flat_cross_node=totals[:, 3],
        pairs=totals[:, 4],
        pairs_cross_node=totals[:, 5],
        device_load=np.array([load for _, load, _ in layers]) / topology.relative_speed,
        active_experts=active,
        slots=placement.slots_per_device(),
        num_experts=placement.num_experts,
        devices_per_node=tuple(len(node.devices) for node in topology.nodes),
    )


def sources(trace: RoutingTrace, num_devices: int) -> Ints:
    """`[tokens]` source device: requests in order of first appearance, dealt round-robin."""
    _, first, inverse = np.unique(trace.requests, return_index=True, return_inverse=True)
    order = np.empty(len(first), dtype=np.int64)
    order[np.argsort(first, kind="stable")] = np.arange(len(first))
    return order[inverse] % num_devices


def decode_steps(trace: RoutingTrace) -> Ints | None:
    """`[tokens]` number of the decode batch (the j-th decode token of every request is in batch j), -1 in prefill."""
    if trace.phase is None or not (trace.phase == DECODE).any():
        return None
    steps = np.full(trace.num_tokens, -1, dtype=np.int64)
    decode = np.flatnonzero(trace.phase == DECODE)
    by_request = decode[np.argsort(trace.requests[decode], kind="stable")]
    starts = np.flatnonzero(np.diff(trace.requests[by_request], prepend=np.iinfo(np.int64).min))
    lengths = np.diff(np.append(starts, len(by_request)))
    steps[by_request] = np.arange(len(by_request)) - np.repeat(starts, lengths)
    return steps


def _replay_layer(
    table: ChoiceTable, layer_id: int, topk_ids: npt.NDArray[Any], source: Ints, topology: Topology, seed: int
) -> tuple[list[int], Floats, Ints]:
    """Six totals of copies, pairs per device, and the device of each pair `[tokens, k]`."""
    num_devices, num_nodes = topology.num_devices, topology.num_nodes
    node = topology.node_of_device
    ingress = topology.rail_peers
    totals = np.zeros(6, dtype=np.int64)
    load = np.zeros(num_devices)
    chosen = np.empty(topk_ids.shape, dtype=np.int64)
    chunk = min(16_384, max(1, _CHUNK_CELLS // num_devices))
    for start in range(0, len(topk_ids), chunk):
        ids = topk_ids[start : start + chunk].astype(np.int64)
        own = source[start : start + chunk]
        rows = np.arange(len(ids))
        devices = table.choose(layer_id, ids, own, np.arange(start, start + len(ids)), seed=seed)
        chosen[start : start + chunk] = devices
        load += np.bincount(devices[devices >= 0], minlength=num_devices)
        reached = np.zeros((len(ids), num_devices + 1), dtype=bool)
        reached[rows[:, None], devices] = True  # -1 falls into the last column
        reached = reached[:, :num_devices]
        reached_nodes = np.zeros((len(ids), num_nodes), dtype=bool)
        for device in range(num_devices):
            reached_nodes[:, node[device]] |= reached[:, device]
        away = devices >= 0
        # Each device that hosts an expert gets a copy inside its node, unless it is the source or the ingress device itself.
        entry = ingress[own]
        handed = reached & (entry[:, node] != np.arange(num_devices))
        reached_nodes[rows, node[own]] = False
        reached[rows, own] = False
        far = node[None, :] != node[own][:, None]
        totals += [
            reached_nodes.sum(),
            handed.sum(),
            reached.sum(),
            (reached & far).sum(),
            (away & (devices != own[:, None])).sum(),
            (away & (node[devices] != node[own][:, None])).sum(),
        ]
    return totals.tolist(), load, chosen


def _active_experts(topk_ids: npt.NDArray[Any], devices: Ints, steps: Ints, num_devices: int) -> float:
    """Mean over decode batches of the most distinct experts that any device computes."""
    num_experts = int(topk_ids.max(initial=0)) + 1
    token, k = np.nonzero((topk_ids >= 0) & (steps >= 0)[:, None])
    step, device, expert = steps[token], devices[token, k], topk_ids[token, k].astype(np.int64)
    distinct = np.unique((step * num_devices + device) * num_experts + expert) // num_experts
    counts = np.bincount(distinct, minlength=(int(steps.max()) + 1) * num_devices)
    return float(counts.reshape(-1, num_devices).max(axis=1).mean())


def _check(placement: Placement, trace: RoutingTrace, topology: Topology) -> None:
    if placement.num_experts != trace.num_experts:
        raise MismatchError(
            f"{placement.source}: num_experts: {placement.num_experts}, but {trace.source} has {trace.num_experts}; "
            "use a trace of the model that was planned for"
        )
    if placement.layer_ids != trace.layer_ids:
        raise MismatchError(
            f"{placement.source}: layers: {len(placement.layers)} with ids {list(placement.layer_ids)[:4]}..., but {trace.source} has "
            f"{trace.num_layers} with ids {list(trace.layer_ids)[:4]}...; use a trace of the model that was planned for"
        )
    if placement.topology.shape != topology.shape:
        raise MismatchError(
            f"{topology.source}: nodes: {topology.shape}, but {placement.source} is planned for {placement.topology.shape}; plan again"
        )
