"""Replay a trace through a placement: copies between nodes and devices, loads, memory (DESIGN.md, Words and numbers)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.choice import ChoiceTable, batch_policy, choice_table, place_requests
from grace_moe.errors import MismatchError
from grace_moe.evaluation.batches import PREFILL_BATCH, batch_balance, choose_by_batch, number_batches
from grace_moe.placement import LayerPlacement, Placement, check_same_model
from grace_moe.topology import Topology
from grace_moe.trace import DECODE, PREFILL, RoutingTrace, order_of_requests

_CHUNK_CELLS = 2**20
"""(token, device) cells replayed at once; bounds memory."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PhaseCounts:
    """What the tokens of one phase cost."""

    num_tokens: int
    cross_node: Ints
    """`[layers]` (token, other node) copies."""
    device_load: Floats
    """`[layers, devices]` pairs computed, over the device's relative speed."""

    @property
    def cross_node_copies(self) -> float:
        return float(self.cross_node.mean() / max(1, self.num_tokens))

    @property
    def load_max_over_mean(self) -> float:
        return _max_over_mean(self.device_load)


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
    cross_node_links: Ints
    """`[layers, devices, nodes]` the copies of `cross_node`, by sender and node: each goes to the sender's rail peer there."""
    intra_node_links: Ints
    """`[layers, devices, local ranks]` the copies of `intra_node`, by sender and local rank on the sender's own node."""
    device_load: Floats
    """`[layers, devices]` pairs computed, over the device's relative speed."""
    active_experts: Floats | None
    """`[layers]` most distinct experts active on a device, mean over decode batches; None without decode tokens."""
    slots: Ints
    """`[layers, devices]` experts held."""
    num_experts: int
    devices_per_node: tuple[int, ...]
    batch_balance: Floats | None = None
    """`[layers]` load of the busiest device over the mean in a batch, mean over batches; None unless asked for."""
    phases: tuple[PhaseCounts, PhaseCounts] | None = None
    """Prefill's part and decode's; None unless the trace has tokens of both."""
    pass_cross_node: Ints | None = None
    """`[layers, passes]` the copies of `cross_node` in each forward pass; None unless passes were given."""
    pass_flat_cross_node: Ints | None = None
    """`[layers, passes]` those of `flat_cross_node`."""

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
        return _max_over_mean(self.device_load)

    @property
    def load_std_over_mean(self) -> float:
        return float((self.device_load.std(axis=1) / self._mean_load).mean())

    @property
    def idle_fraction(self) -> float:
        most = np.maximum(self.device_load.max(axis=1), self._mean_load)
        return float((1 - self._mean_load / most).mean())

    @property
    def active_experts_max(self) -> float | None:
        return None if self.active_experts is None else float(self.active_experts.mean())

    @property
    def batch_load_max_over_mean(self) -> float | None:
        return None if self.batch_balance is None else float(self.batch_balance.mean())

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

    @property
    def _mean_load(self) -> Floats:
        return _mean_load(self.device_load)

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


def evaluate(
    placement: Placement,
    trace: RoutingTrace,
    topology: Topology | None = None,
    *,
    seed: int = 0,
    policy: str | None = None,
    batch_tokens: int | None = None,
    first_tokens: int | None = None,
    passes: Ints | None = None,
) -> Evaluation:
    """Replay `trace` through `placement`; requests are dealt round-robin over the devices. Tokens of phase decode take the replicas
    that the placement has for decode.

    Args:
        topology: links and speeds to judge by, where they are not the placement's own; the shape must be the same.
        seed: of the replica choice.
        policy: one of `planning.BATCH_POLICIES`, to choose replicas batch by batch; None = by the placement's own choice.
        batch_tokens: tokens of a prefill batch (1024 with a policy); decode batches are the trace's steps. Given it, or a
            policy, the balance of each batch is measured too.
        first_tokens: send each request to the node that its first so many tokens point to instead, and deal it round-robin over
            that node's devices (`planning.request_placement`); all of the request is counted.
        passes: `[tokens]` number of the forward pass of each token: copies are counted by pass too.

    Raises:
        MismatchError: trace, placement and topology don't belong together.
        UsageError: an unknown policy, or batches of no tokens.
    """
    topology = placement.topology if topology is None else topology
    check_same_model(placement, trace)
    _check_shape(placement, topology)
    if trace.counts_only:
        raise MismatchError(f"{trace.source}: made of counts, which don't tell what a token costs; measure on a trace of tokens")
    source, steps = sources(trace, topology.num_devices), decode_steps(trace)
    if first_tokens is not None:
        source = placed_sources(placement, trace, first_tokens)
    by_batch = None if policy is None else batch_policy(policy)
    batches = None
    if policy is not None or batch_tokens is not None:
        batches = number_batches(steps, trace.num_tokens, PREFILL_BATCH if batch_tokens is None else batch_tokens)
    decoding = np.flatnonzero(np.zeros(trace.num_tokens, dtype=bool) if steps is None else steps >= 0)
    both_phases = 0 < len(decoding) < trace.num_tokens
    layers, decode_layers, active, balance = [], [], [], []
    for index, layer in enumerate(placement.layers):
        topk_ids = trace.topk_ids[:, index]
        if by_batch is None or batches is None:
            devices = np.empty(topk_ids.shape, dtype=np.int64)
            for of_phase, tokens in _by_phase(layer, decoding, trace.num_tokens):
                table = choice_table(of_phase, placement.topology, placement.replica_choice)
                _choose_in_chunks(table, layer.layer_id, topk_ids, source, tokens, topology.num_devices, seed, devices)
        else:
            devices = choose_by_batch(by_batch, layer, topology, topk_ids, source, batches)
        layers.append(_count(devices, source, topology, passes))
        if both_phases:
            decode_layers.append(_count(devices[decoding], source[decoding], topology))
        if batches is not None:
            balance.append(batch_balance(devices, batches, topology.relative_speed))
        if steps is not None:
            active.append(_active_experts(topk_ids, devices, steps, topology.num_devices))
    cross_node_links = np.stack([layer.cross_node_links for layer in layers])
    intra_node_links = np.stack([layer.intra_node_links for layer in layers])
    return Evaluation(
        num_tokens=trace.num_tokens,
        cross_node=cross_node_links.sum(axis=(1, 2)),
        intra_node=intra_node_links.sum(axis=(1, 2)),
        flat=np.array([layer.flat for layer in layers]),
        flat_cross_node=np.array([layer.flat_cross_node for layer in layers]),
        pairs=np.array([layer.pairs for layer in layers]),
        pairs_cross_node=np.array([layer.pairs_cross_node for layer in layers]),
        cross_node_links=cross_node_links,
        intra_node_links=intra_node_links,
        device_load=np.stack([layer.pairs_of_device for layer in layers]) / topology.relative_speed,
        active_experts=None if steps is None else np.array(active),
        slots=placement.slots_per_device(),
        num_experts=placement.num_experts,
        devices_per_node=tuple(len(node.devices) for node in topology.nodes),
        batch_balance=None if batches is None else np.array(balance),
        phases=_phases(layers, decode_layers, trace.num_tokens, len(decoding), topology) if both_phases else None,
        pass_cross_node=None if passes is None else np.stack([layer.pass_cross_node for layer in layers]),
        pass_flat_cross_node=None if passes is None else np.stack([layer.pass_flat_cross_node for layer in layers]),
    )


def sources(trace: RoutingTrace, num_devices: int) -> Ints:
    """`[tokens]` source device: requests in order of first appearance, dealt round-robin."""
    return order_of_requests(trace)[0] % num_devices


def placed_sources(placement: Placement, trace: RoutingTrace, first_tokens: int) -> Ints:
    """`[tokens]` source device where a front-end places requests by their first tokens."""
    nodes = place_requests(placement, trace, first_tokens)
    devices = np.empty(len(nodes), dtype=np.int64)
    for node in range(placement.topology.num_nodes):
        members = np.array(placement.topology.devices_of_node(node))
        here = np.flatnonzero(nodes == node)
        devices[here] = members[np.arange(len(here)) % len(members)]
    return devices[order_of_requests(trace)[0]]


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


class _LayerCounts:
    """Counts of one layer, added up chunk by chunk. Letters: T tokens, D devices, N nodes."""

    def __init__(self, topology: Topology, num_passes: int) -> None:
        sizes = [len(node.devices) for node in topology.nodes]
        self.node, self.rail_peers = topology.node_of_device, topology.rail_peers
        self.first_device_of_node = np.cumsum([0, *sizes[:-1]])
        self.local_rank = np.arange(topology.num_devices) - self.first_device_of_node[self.node]
        self.cross_node_links = np.zeros((topology.num_devices, topology.num_nodes), dtype=np.int64)
        self.intra_node_links = np.zeros((topology.num_devices, max(sizes)), dtype=np.int64)
        self.pairs_of_device = np.zeros(topology.num_devices, dtype=np.int64)
        self.pass_cross_node = np.zeros(num_passes, dtype=np.int64)
        self.pass_flat_cross_node = np.zeros(num_passes, dtype=np.int64)
        self.flat = self.flat_cross_node = self.pairs = self.pairs_cross_node = 0

    def add(self, devices: Ints, own: Ints, passes: Ints | None) -> None:
        """Count one chunk: `devices` `[tokens, k]` (-1 = none) compute the pairs of tokens whose source is `own` `[tokens]`.

        `passes`: `[tokens]` the forward pass of each, where those are counted apart.
        """
        node, num_devices = self.node, len(self.node)
        rows, own_node = np.arange(len(own)), node[own]
        sent = (devices >= 0) & (devices != own[:, None])
        self.pairs += int(sent.sum())
        self.pairs_cross_node += int((sent & (node[devices] != own_node[:, None])).sum())
        self.pairs_of_device += np.bincount(devices[devices >= 0], minlength=num_devices)

        reached_TD = np.zeros((len(own), num_devices + 1), dtype=bool)
        reached_TD[rows[:, None], devices] = True  # -1 falls into the last column
        reached_TD = reached_TD[:, :num_devices]
        reached_TN = np.logical_or.reduceat(reached_TD, self.first_device_of_node, axis=1)
        reached_TN[rows, own_node] = False
        token, to_node = np.nonzero(reached_TN)
        np.add.at(self.cross_node_links, (own[token], to_node), 1)
        if passes is not None:
            np.add.at(self.pass_cross_node, passes[token], 1)

        # Inside each node, the device of the source's local rank hands copies on: the source itself, or the ingress device.
        token, device = np.nonzero(reached_TD)
        hands_on = self.rail_peers[own[token], node[device]]
        to_other = hands_on != device
        np.add.at(self.intra_node_links, (hands_on[to_other], self.local_rank[device[to_other]]), 1)
        self.flat += int((device != own[token]).sum())
        far = node[device] != own_node[token]
        self.flat_cross_node += int(far.sum())
        if passes is not None:
            np.add.at(self.pass_flat_cross_node, passes[token[far]], 1)


def _chunks(num_tokens: int, num_devices: int) -> Iterator[slice]:
    chunk = min(16_384, max(1, _CHUNK_CELLS // num_devices))
    return (slice(start, min(start + chunk, num_tokens)) for start in range(0, num_tokens, chunk))


def _by_phase(layer: LayerPlacement, decoding: Ints, num_tokens: int) -> list[tuple[LayerPlacement, Ints]]:
    """The layer as each phase sees it, and the tokens of that phase; one entry where the layer sees no difference."""
    every = np.arange(num_tokens)
    if not layer.decode_weights:
        return [(layer, every)]
    return [(layer, np.setdiff1d(every, decoding, assume_unique=True)), (layer.in_decode(), decoding)]


def _choose_in_chunks(
    table: ChoiceTable, layer_id: int, topk_ids: npt.NDArray[Any], source: Ints, tokens: Ints, num_devices: int, seed: int, devices: Ints
) -> None:
    """Write the device of each pair of `tokens` into `devices` `[all tokens, k]`, by a layer's own table."""
    for part in _chunks(len(tokens), num_devices):
        some = tokens[part]
        devices[some] = table.choose(layer_id, topk_ids[some].astype(np.int64), source[some], some, seed=seed)


def _count(devices: Ints, source: Ints, topology: Topology, passes: Ints | None = None) -> _LayerCounts:
    counts = _LayerCounts(topology, 0 if passes is None else int(passes.max(initial=-1)) + 1)
    for part in _chunks(len(devices), topology.num_devices):
        counts.add(devices[part], source[part], None if passes is None else passes[part])
    return counts


def _phases(
    layers: list[_LayerCounts], in_decode: list[_LayerCounts], num_tokens: int, num_decoding: int, topology: Topology
) -> tuple[PhaseCounts, PhaseCounts]:
    """Prefill's part of the counts of all layers, and decode's."""
    cross = np.array([[counts.cross_node_links.sum() for counts in part] for part in (layers, in_decode)])
    pairs = np.array([[counts.pairs_of_device for counts in part] for part in (layers, in_decode)])
    speed = topology.relative_speed
    return (
        PhaseCounts(num_tokens=num_tokens - num_decoding, cross_node=cross[0] - cross[1], device_load=(pairs[0] - pairs[1]) / speed),
        PhaseCounts(num_tokens=num_decoding, cross_node=cross[1], device_load=pairs[1] / speed),
    )


def _mean_load(device_load: Floats) -> Floats:
    """`[layers]` mean over devices, above 0."""
    means: Floats = np.maximum(device_load.mean(axis=1), 1e-12)
    return means


def _max_over_mean(device_load: Floats) -> float:
    return float((device_load.max(axis=1) / _mean_load(device_load)).mean())


def _active_experts(topk_ids: npt.NDArray[Any], devices: Ints, steps: Ints, num_devices: int) -> float:
    """Mean over decode batches of the most distinct experts that any device computes."""
    num_experts = int(topk_ids.max(initial=0)) + 1
    token, k = np.nonzero((topk_ids >= 0) & (steps >= 0)[:, None])
    step, device, expert = steps[token], devices[token, k], topk_ids[token, k].astype(np.int64)
    distinct = np.unique((step * num_devices + device) * num_experts + expert) // num_experts
    counts = np.bincount(distinct, minlength=(int(steps.max()) + 1) * num_devices)
    return float(counts.reshape(-1, num_devices).max(axis=1).mean())


def _check_shape(placement: Placement, topology: Topology) -> None:
    if placement.topology.shape != topology.shape:
        raise MismatchError(
            f"{topology.source}: nodes: {topology.shape}, but {placement.source} is planned for {placement.topology.shape}; plan again"
        )
