"""Our planner: placement, replicas and their weights as one problem, on the true objective, for routing not yet seen.

Per layer: (1) search which experts each node holds, replicas included, to minimise the nodes that a token must reach under
joint replica choice, with prices on load that the future may bring (`joint.node_search`); (2) pack each node's experts on its
devices, equal slots each (`joint.device_packing`); (3) solve the split of each expert's tokens among its replicas, so that
devices come out even (`joint.split`).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from grace_moe.errors import UsageError
from grace_moe.placement import LayerPlacement, even_weights
from grace_moe.planning.baselines.eplb import eplb
from grace_moe.planning.joint_choice import joint_choice_table
from grace_moe.planning.request import PlannedLayers, PlanRequest
from grace_moe.topology import Topology

if TYPE_CHECKING:
    from grace_moe.planning.joint.node_search import NodeRoom

SEARCH_TOKENS = 1500
"""Tokens of the long search: copies per token is a mean, and a sample finds the same structure."""
POLISH_TOKENS = 6000
"""Tokens of the short search and of everything after it."""
PACKING_TOKENS = 2000
"""Tokens (from each source node) that device packing looks at."""
MANY_NODES = "more nodes than the exact search takes (8): placed by load (eplb), replicas chosen jointly"


def grace(request: PlanRequest, *, load_cap: float = 1.05, effort: float = 1.0, threads: int = 2) -> PlannedLayers:
    """Plan every layer jointly. Every device gets the same number of slots: `slots_per_device`, else by redundancy (1.25).

    Args:
        load_cap: expected load over the mean that a node or device may have at no price; more of it buys less traffic.
        effort: multiplies the moves that the search tries; its time is proportional.
        threads: layers planned at once; the plan does not depend on it.

    Raises:
        UsageError: an option out of range.
    """
    if not 0 < effort <= 1000 or threads < 1:
        raise UsageError(f"effort {effort}, threads {threads}: use an effort above 0, up to 1000, and at least one thread")
    if not load_cap >= 1:
        raise UsageError(f"load_cap {load_cap} is below the mean load; use 1 or more")
    topology, trace = request.topology, request.trace
    from grace_moe.planning.joint.cover import MAX_NODES

    if topology.num_nodes > MAX_NODES:
        planned = eplb(request)
        return PlannedLayers(layers=planned.layers, replica_choice="joint", notes=(*planned.notes, MANY_NODES))
    jobs = [
        _LayerJob(
            layer_id=layer_id,
            ids=trace.topk_ids[:, index].astype(np.int64),
            requests=trace.requests,
            experts=request.num_experts,
            topology=topology,
            slots=request.equal_slots,
            load_cap=load_cap,
            effort=effort,
            seed=(request.seed * 1_000_003 + index) % 2**32,
        )
        for index, layer_id in enumerate(trace.layer_ids)
    ]
    layers = []
    with ThreadPoolExecutor(threads) as pool:  # the search releases the interpreter lock
        for layer in pool.map(_plan_layer, jobs):
            layers.append(layer)
            if request.progress is not None:
                request.progress(len(layers), len(jobs))
    return PlannedLayers(layers=tuple(layers), replica_choice="joint")


@dataclass(frozen=True, kw_only=True)
class _LayerJob:
    layer_id: int
    ids: npt.NDArray[np.int64]
    requests: npt.NDArray[np.int64]
    experts: int
    topology: Topology
    slots: int
    load_cap: float
    effort: float
    seed: int


def _plan_layer(job: _LayerJob) -> LayerPlacement:
    from grace_moe.planning.joint.node_search import NodeRoom, SearchOptions, search_nodes, seed_copies
    from grace_moe.planning.joint.uncertainty import load_shares

    devices = np.array([len(node.devices) for node in job.topology.nodes], dtype=np.int64)
    speed = job.topology.relative_speed
    capacity = np.array([speed[job.topology.node_of_device == n].sum() for n in range(len(devices))]) / speed.sum()
    room = NodeRoom(slots=np.minimum(devices * job.slots, devices * job.experts), devices=devices, capacity=capacity)
    share, noise = load_shares(job.ids, job.requests, job.experts)
    order = np.random.default_rng(job.seed).permutation(len(job.ids))
    few, many = job.ids[order[:SEARCH_TOKENS]], job.ids[order[:POLISH_TOKENS]]
    copies = seed_copies(share, room)
    if len(devices) > 1 and len(few):
        long = SearchOptions(proposals=int(150_000 * job.effort), node_cap=job.load_cap)
        copies = search_nodes(few, share, noise, room, long, job.seed, copies)
        short = replace(long, proposals=int(15_000 * job.effort), hot=3e-4, cold=3e-5)
        copies = search_nodes(many, share, noise, room, short, job.seed, copies)
    return _place(job, many, share, noise, copies, room)


def _place(
    job: _LayerJob,
    ids: npt.NDArray[np.int64],
    share: npt.NDArray[np.float64],
    noise: npt.NDArray[np.float64],
    copies: npt.NDArray[np.int64],
    room: NodeRoom,
) -> LayerPlacement:
    """Node contents to devices and weights."""
    from grace_moe.planning.joint.device_packing import NodeShare, PackingOptions, pack_devices
    from grace_moe.planning.joint.split import balance, demand

    topology, nodes = job.topology, len(room.slots)
    hosts = ((copies > 0) * (1 << np.arange(nodes))[:, None]).sum(axis=0)
    # The split over nodes first, as if each were one device: it says what each node computes.
    on_nodes = tuple(tuple(int(n) for n in np.flatnonzero(copies[:, e])) for e in range(job.experts))
    one_device_a_node = Topology.regular(nodes, 1)
    draft = joint_choice_table(
        LayerPlacement(layer_id=job.layer_id, devices_of_expert=on_nodes, replica_weights=even_weights(on_nodes)), one_device_a_node
    )
    cells = demand(ids, draft, hosts, nodes, layer_id=job.layer_id, seed=job.seed)
    weights = balance(cells, _padded(on_nodes), np.arange(nodes), room.capacity)
    by_node = joint_choice_table(_layer(job.layer_id, on_nodes, weights), one_device_a_node)
    sample = ids[:PACKING_TOKENS]
    rows = np.tile(sample, (nodes, 1))
    sources = np.repeat(np.arange(nodes), len(sample))
    computed_on = by_node.choose(job.layer_id, rows, sources, np.arange(len(rows)), seed=job.seed)
    pairs = max(int((computed_on >= 0).sum()), 1)
    whole = np.maximum(np.bincount(rows[rows >= 0], minlength=job.experts), 1)

    found: list[list[int]] = [[] for _ in range(job.experts)]
    for node in range(nodes):
        members = topology.devices_of_node(node)
        here = np.where(computed_on == node, rows, -1)
        here = here[(here >= 0).any(axis=1)]
        load = np.bincount(here[here >= 0], minlength=job.experts).astype(float)
        part = NodeShare(
            copies=copies[node],
            load=load,
            share_here=load / whole,
            rows=here,
            fair=pairs * topology.relative_speed[list(members)] / topology.relative_speed.sum(),
        )
        slot = pack_devices(part, job.slots, noise * topology.num_devices**2, PackingOptions(cap=job.load_cap), job.seed)
        for device, experts in zip(members, slot, strict=True):
            for expert in experts:
                if expert >= 0 and device not in found[expert]:
                    found[expert].append(device)
    on_devices = tuple(tuple(devices) for devices in found)
    weights = balance(cells, _padded(on_devices), topology.node_of_device, topology.relative_speed)
    return _primary_first(_layer(job.layer_id, on_devices, weights))


def _padded(devices_of_expert: tuple[tuple[int, ...], ...]) -> npt.NDArray[np.int64]:
    """`[E, R]` devices, -1 = no replica."""
    table = np.full((len(devices_of_expert), max(len(d) for d in devices_of_expert)), -1, dtype=np.int64)
    for expert, devices in enumerate(devices_of_expert):
        table[expert, : len(devices)] = devices
    return table


def _layer(layer_id: int, devices_of_expert: tuple[tuple[int, ...], ...], weights: npt.NDArray[np.float64]) -> LayerPlacement:
    shares: list[tuple[float, ...]] = []
    for expert, devices in enumerate(devices_of_expert):
        row: Any = weights[expert, : len(devices)]
        shares.append(tuple(float(w) for w in row / row.sum()))
    return LayerPlacement(layer_id=layer_id, devices_of_expert=devices_of_expert, replica_weights=tuple(shares))


def _primary_first(layer: LayerPlacement) -> LayerPlacement:
    """The replica of the largest weight is the primary; ties go to the lower device."""
    pairs = [
        sorted(zip(devices, weights, strict=True), key=lambda p: (-p[1], p[0]))
        for devices, weights in zip(layer.devices_of_expert, layer.replica_weights, strict=True)
    ]
    return LayerPlacement(
        layer_id=layer.layer_id,
        devices_of_expert=tuple(tuple(d for d, _ in row) for row in pairs),
        replica_weights=tuple(tuple(w for _, w in row) for row in pairs),
    )
