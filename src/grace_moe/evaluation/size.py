"""`size`: what a model takes on other clusters, links and batches, and where something stops mattering (docs/cost.md#size)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.cost.flow_counter import FlowCounter
from grace_moe.cost.flows import Flows
from grace_moe.cost.hardware import hardware_of
from grace_moe.cost.layer_time import LayerTime
from grace_moe.cost.links import tiers_of
from grace_moe.cost.packing import packed, replica_counts
from grace_moe.cost.step import Setting, step_time
from grace_moe.errors import MismatchError, UsageError
from grace_moe.placement import check_same_model
from grace_moe.topology import Device, Node, Topology
from grace_moe.trace import RoutingTrace, expert_loads, tokens_of

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
SAMPLE = 1024
"""Tokens that copies are counted on; loads are of all."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is tried: every combination."""

    nodes: Sequence[int]
    redundancies: Sequence[float] = (1.0, 1.25, 1.5, 2.0)
    """Slots over experts; more where there would be a device without one."""
    links: Sequence[float] = (1.0,)
    """Factors on the bandwidth between nodes."""
    batches: Sequence[int] = (32_768,)
    """Tokens a batch over all devices."""

    @property
    def clusters(self) -> list[tuple[int, float]]:
        """Nodes and redundancy: what is replayed; links and batches are worked out from that."""
        return [(nodes, redundancy) for nodes in self.nodes for redundancy in self.redundancies]


@dataclass(frozen=True, kw_only=True)
class SizePoint:
    """One combination."""

    topology: str
    devices: int
    redundancy: float
    link: float
    batch: int
    in_order: LayerTime
    """Of a layer with experts in order and no replicas; where there are more devices than experts, each expert on one."""
    balanced: LayerTime
    """Packed by load, with the redundancy's replicas."""
    memory_bytes: float
    """Expert weights on a device, all layers, balanced."""
    factor: float
    """Load of the busiest device balanced over in order: what AIConfigurator takes to be 0.8."""
    best: bool = False
    """Whether no other point of its batch and links takes fewer or as many devices, as little memory, and less time."""

    @property
    def gain(self) -> float:
        """Share of the time that balance saves."""
        return 1 - self.balanced.total / self.in_order.total if self.in_order.total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The row's JSON."""
        names = ("topology", "devices", "redundancy", "link", "batch", "best")
        parts = {name: getattr(self.balanced, name) for name in ("dispatch", "compute", "combine", "idle", "hidden")}
        return {
            **{name: getattr(self, name) for name in names},
            "milliseconds_per_layer": {"in_order": 1e3 * self.in_order.total, "balanced": 1e3 * self.balanced.total},
            "parts": {name: 1e3 * seconds for name, seconds in parts.items()},
            "limited_by": max(parts, key=lambda name: parts[name]),
            "gain": self.gain,
            "memory_gb_per_device": self.memory_bytes / 1e9,
            "eplb_token_factor": self.factor,
        }


def size(
    trace: RoutingTrace,
    base: Topology,
    setting: Setting,
    sweep: Sweep,
    on_cluster: Callable[[str], None] = lambda _: None,
    *,
    measure_on: RoutingTrace | None = None,
) -> list[SizePoint]:
    """Every combination of the sweep: packed by the loads of half of the requests, and timed on the others'.

    Tokens come in evenly on all devices. A device takes in copies in proportion to its load.

    Args:
        base: links, hardware and devices a node; its number of nodes is not used.
        on_cluster: told each cluster when it is replayed.
        measure_on: what is timed, and the whole of `trace` is packed by; None = the trace's halves (`RoutingTrace.split_requests`).

    Raises:
        MismatchError: a trace that doesn't tell tokens, traces of different models, or a base with irregular links.
        UsageError: a number that is out of range.
    """
    if trace.surrogate:
        raise MismatchError(f"{trace.source}: a surrogate, drawn to match counts of pairs; size on a trace of tokens")
    if base.devices_per_node is None or base.bandwidth is not None or base.tiers:
        raise MismatchError(f"{base.source}: nodes of different sizes, further tiers or a matrix; give one of equal nodes, as 2x8")
    if not all(redundancy >= 1 for redundancy in sweep.redundancies):
        raise UsageError("redundancies: slots over experts are 1 or more")
    both = trace.split_requests() if measure_on is None else (trace, measure_on)
    check_same_model(*both)
    halves = tuple(_of_phase(half, setting.phase) for half in both)
    points = []
    for nodes, redundancy in sweep.clusters:
        topology = _grown(base, nodes)
        flows = _what_if(halves, topology, redundancy)
        on_cluster(topology.shape)
        points += _points(flows, topology, redundancy, setting, sweep)
    return _marked(points)


def _of_phase(trace: RoutingTrace, phase: str) -> RoutingTrace:
    return trace.select(np.flatnonzero(tokens_of(trace, phase)))


def _grown(base: Topology, nodes: int) -> Topology:
    """The base with another number of nodes."""
    count = base.devices_per_node or 1
    kind = base.nodes[0].devices[0]
    devices = tuple(Device(name=f"device{d}", memory_bytes=kind.memory_bytes) for d in range(count))
    grown = tuple(Node(name=f"node{n}", devices=devices) for n in range(nodes))
    return replace(base, nodes=grown, hardware=hardware_of(base).name, source=f"{nodes}x{count}")


def _what_if(halves: Sequence[RoutingTrace], topology: Topology, redundancy: float) -> tuple[Flows, Flows]:
    """Flows with experts in order, and packed by load."""
    planned, measured = (expert_loads(half).astype(float) for half in halves)
    layers, experts = planned.shape
    devices = topology.num_devices
    in_order = np.broadcast_to(np.arange(experts) * devices // experts, (layers, experts))
    slots = devices * math.ceil(round(experts * redundancy, 6) / devices)
    counts = replica_counts(planned, slots)
    each = np.stack([np.repeat(load / count, count) for load, count in zip(planned, counts, strict=True)])
    return (
        _flows(halves[1], measured, topology, np.ones_like(counts), in_order),
        _flows(halves[1], measured, topology, counts, packed(each, devices)),
    )


def _flows(trace: RoutingTrace, loads: Floats, topology: Topology, counts: Ints, slot_device: Ints) -> Flows:
    """Flows of all of a trace's tokens.

    Args:
        loads: `[layers, experts]` pairs.
        counts: `[layers, experts]` replicas; slots are in order of experts.
        slot_device: `[layers, slots]`.
    """
    slot_pairs = np.stack([np.repeat(load / count, count) for load, count in zip(loads, counts, strict=True)])
    token = np.arange(min(SAMPLE, trace.num_tokens))
    source = token % topology.num_devices
    ports, tiers = [], tiers_of(topology)
    for layer, (count, device) in enumerate(zip(counts, slot_device, strict=True)):
        first = np.cumsum(count) - count
        expert = trace.topk_ids[: len(token), layer].astype(np.int64)
        chosen = device[first[expert] + (token[:, None] * 7919 + expert) % count[expert]]
        counter = FlowCounter(topology, tiers, 1)
        counter.add(np.where(expert < 0, -1, chosen), source, np.zeros(len(token), dtype=np.int64))
        ports.append(counter.of_part(0)[0])
    scale = trace.num_tokens / max(1, len(token))
    evened = Flows(
        tokens=np.full(topology.num_devices, trace.num_tokens / topology.num_devices),
        ports=np.stack(ports) * scale,
        per_rate=None,
        slot_device=np.ascontiguousarray(slot_device),
        slot_pairs=slot_pairs,
    )
    return _evened(evened)


def _evened(flows: Flows) -> Flows:
    """Copies spread as they are expected: sent evenly, taken in by load. A sample has too few for each device."""
    load = flows.pairs_of_device()
    share = load / np.maximum(load.mean(axis=1, keepdims=True), 1e-300)
    mean = flows.ports.mean(axis=3, keepdims=True)
    spread = np.stack([np.ones_like(share), share], axis=1)  # sent, taken in
    return replace(flows, ports=mean * spread[:, None, :, :, None])


def _points(flows: tuple[Flows, Flows], topology: Topology, redundancy: float, setting: Setting, sweep: Sweep) -> list[SizePoint]:
    """Links and batches of one cluster."""
    in_order, balanced = flows
    slots = balanced.slot_pairs.shape[1]
    busiest = [flow.pairs_of_device().max(axis=1)[flow.recorded].mean() for flow in flows]
    found = []
    for link in sweep.links:
        across = replace(topology.cross_node, bandwidth_bytes_per_s=topology.cross_node.bandwidth_bytes_per_s * link)
        linked = replace(topology, cross_node=across)
        for batch in sweep.batches:
            at = replace(setting, batch_tokens=batch)
            found.append(
                SizePoint(
                    topology=topology.shape,
                    devices=topology.num_devices,
                    redundancy=redundancy,
                    link=link,
                    batch=batch,
                    in_order=step_time(in_order, linked, at),
                    balanced=step_time(balanced, linked, at),
                    memory_bytes=slots / topology.num_devices * len(balanced.slot_pairs) * setting.model.expert_bytes,
                    factor=float(busiest[1] / busiest[0]),
                )
            )
    return found


def _marked(points: list[SizePoint]) -> list[SizePoint]:
    """The frontier of devices, memory and time, for each batch and link."""

    def beats(one: SizePoint, other: SizePoint) -> bool:
        ours = (one.devices, one.memory_bytes, one.balanced.total)
        theirs = (other.devices, other.memory_bytes, other.balanced.total)
        return ours != theirs and all(a <= b for a, b in zip(ours, theirs, strict=True))

    def rivals(point: SizePoint) -> list[SizePoint]:
        return [other for other in points if (other.batch, other.link) == (point.batch, point.link)]

    return [replace(point, best=not any(beats(other, point) for other in rivals(point))) for point in points]


def stops_mattering(points: Sequence[SizePoint], least: float = 0.03) -> list[str]:
    """Sentences: where balance, links and devices save under `least` of a layer's time."""
    told = []
    for shape in dict.fromkeys(point.topology for point in points):
        here = [point for point in points if point.topology == shape]
        pays = sorted({point.batch for point in here if point.gain >= least})
        tried = sorted({point.batch for point in here})
        if not pays:
            told.append(f"{shape}: balance saves under {least:.0%} at every batch that was tried")
        elif pays[0] > tried[0]:
            told.append(f"{shape}: balance saves under {least:.0%} below batches of {pays[0]:,} tokens")
        told += _links_told(shape, here, least)
    return told


def _links_told(shape: str, points: Sequence[SizePoint], least: float) -> list[str]:
    """Whether faster links stop being worth it."""
    told = []
    for batch in sorted({point.batch for point in points}):
        best = {link: min(p.balanced.total for p in points if (p.link, p.batch) == (link, batch)) for link in {p.link for p in points}}
        links = sorted(best)
        enough = next((slow for slow, fast in pairwise(links) if best[slow] - best[fast] < least * best[slow]), None)
        if enough is not None:
            told.append(f"{shape}, batches of {batch:,}: links beyond {enough:g} times the base's save under {least:.0%}")
    return told
