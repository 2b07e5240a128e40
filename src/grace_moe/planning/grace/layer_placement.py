"""One layer, from routing to placement: node search, prices and split, device packing; then a look at days to come."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from grace_moe.choice.cover import visited_nodes
from grace_moe.choice.joint import MAX_EXACT_NODES, JointChoiceTable, joint_choice_table
from grace_moe.placement import LayerPlacement, even_weights
from grace_moe.planning.baselines.eplb import layer_by_load
from grace_moe.planning.grace.alignment import source_costs
from grace_moe.planning.grace.candidates import Candidate
from grace_moe.planning.grace.foresight import peaks_of_days, unit_loads
from grace_moe.planning.grace.search.devices import NodeShare, PackingOptions, pack_devices
from grace_moe.planning.grace.search.gathering import gather_devices
from grace_moe.planning.grace.search.node_copies import NodeRoom, seed_copies
from grace_moe.planning.grace.search.node_groups import search_many_nodes
from grace_moe.planning.grace.search.node_state import SearchOptions
from grace_moe.planning.grace.search.nodes import search_nodes
from grace_moe.planning.grace.split import balance, node_prices
from grace_moe.planning.grace.uncertainty import load_shares
from grace_moe.topology import Topology

SEARCH_TOKENS = 1500
"""Tokens of the long search: copies per token is a mean, and a sample finds the same structure."""
POLISH_TOKENS = 6000
"""Tokens of the short search and of everything after it."""
PACKING_TOKENS = 4000
"""Tokens that device packing looks at, from all source nodes together."""
FORESEEN_CELLS = 1 << 25
"""Loads of (unit, source node, device) that the estimate holds; bounds memory on many nodes where each token is its own request."""
LONG = SearchOptions(proposals=110_000)
SHORT = SearchOptions(proposals=15_000, hot=3e-4, cold=3e-5)
AGAIN = SearchOptions(proposals=20_000, hot=2e-3, cold=3e-5)
FROM_START = SearchOptions(proposals=20_000, hot=1e-3, cold=3e-5)
REPLAN = SearchOptions(proposals=8_000, hot=3e-4, cold=3e-5)
"""Of a placement that serves already: a short, cold search moves few experts."""
REPACK = PackingOptions(proposals_per_slot=10, hot=1e-4, stay=0.05)
TRUST = 0.8
"""Share of the tokens taken to come from their request's node: a front-end decides from the first tokens, and may err."""


@dataclass(frozen=True, kw_only=True)
class LayerProblem:
    """What to plan, and how hard to try."""

    layer_id: int
    ids: npt.NDArray[np.int64]
    """`[T, k]`, -1 = none."""
    request: npt.NDArray[np.int64]
    """`[T]` 0, 1, ...: the request of each token, or what stands for it (`units`)."""
    tokens_dealt: bool = False
    """Whether requests are unknown, and each token is dealt to a device by itself."""
    experts: int
    topology: Topology
    slots: int
    """Of each device."""
    start: npt.NDArray[np.int64] | None = None
    """`[N, E]` copies on each node to begin from; None = from nothing."""
    serving: LayerPlacement | None = None
    """Of which `start` are the copies, where it serves already: few experts should move. None = there is none."""
    node_of_request: npt.NDArray[np.int64] | None = None
    """`[requests]` the node that a front-end sends each request to; None = dealt to the devices in turn."""
    steady: bool = False
    """Whether loads are taken as certain, and balance is judged later: requests will be placed so that they are."""
    price: float
    """Copies per token that a unit of expected squared imbalance is worth, to begin with."""
    effort: float
    seed: int
    days: int
    """Seed of the days to come, the same for all layers."""


def expect_by_load(problem: LayerProblem) -> Candidate:
    """EPLB's placement: what balance is compared with."""
    layer = layer_by_load(problem.layer_id, problem.ids, problem.experts, problem.topology, problem.slots)
    return _foresee(problem, layer)


def gather_by_load(problem: LayerProblem, by_load: Candidate) -> Candidate:
    """The same devices as EPLB's, on other nodes: the same balance, fewer copies."""
    tokens = np.random.default_rng(problem.seed).permutation(len(problem.ids))[:SEARCH_TOKENS]
    layer = gather_devices(by_load.layer, problem.ids[tokens], problem.topology, problem.effort, problem.seed)
    return replace(_foresee(problem, layer), peaks=by_load.peaks)


def plan_layer(problem: LayerProblem, price_step: int, copies: npt.NDArray[np.int64] | None) -> tuple[Candidate, npt.NDArray[np.int64]]:
    """A placement at `price_step` times the price, and the copies `[N, E]` on its nodes; deterministic.

    Args:
        copies: found at the last price, to go on from; None = at the first price.
    """
    topology = problem.topology
    devices = np.array([len(node.devices) for node in topology.nodes], dtype=np.int64)
    speed = topology.relative_speed
    capacity = np.bincount(topology.node_of_device, weights=speed) / speed.sum()
    room = NodeRoom(slots=np.minimum(devices * problem.slots, devices * problem.experts), devices=devices, capacity=capacity)
    share, noise = load_shares(problem.ids, problem.request, problem.experts, problem.node_of_request)
    if problem.steady:
        noise = np.zeros_like(noise)
    order = np.random.default_rng(problem.seed).permutation(len(problem.ids))
    few, many = order[:SEARCH_TOKENS], order[:POLISH_TOKENS]
    sources = _source_weights(problem)
    trusted = np.random.default_rng(problem.seed + 1).random(len(problem.ids)) < TRUST
    pins = None if problem.node_of_request is None else np.where(trusted, problem.node_of_request[problem.request], -1)
    search = search_nodes if topology.num_nodes <= MAX_EXACT_NODES else search_many_nodes
    searches = [(few, AGAIN)]
    if problem.serving is not None:
        searches = [(few, REPLAN)]
    elif copies is None:
        searches = [(few, LONG), (many, SHORT)] if problem.start is None else [(few, FROM_START)]
    if copies is None:
        copies = seed_copies(share, room) if problem.start is None else problem.start
    for tokens, options in searches if topology.num_nodes > 1 else ():
        options = replace(options, proposals=int(options.proposals * problem.effort), price=problem.price * price_step)
        copies = search(problem.ids[tokens], share, noise, room, options, problem.seed, copies, None if pins is None else pins[tokens])
    return _foresee(problem, _place(problem, problem.ids[many], sources[many], noise, copies, room)), copies


def _foresee(problem: LayerProblem, layer: LayerPlacement) -> Candidate:
    """The layer with what is expected of it, on the same tokens and days for all layers and placements of a trace."""
    topology = problem.topology
    tokens = np.random.default_rng(problem.days).permutation(len(problem.ids))[:POLISH_TOKENS]
    most = FORESEEN_CELLS // (topology.num_nodes * topology.num_devices)
    if len(units := np.unique(problem.request[tokens])) > most:
        tokens = tokens[problem.request[tokens] < units[most]]
    ids, sources = problem.ids[tokens], _source_weights(problem)[tokens]
    table = joint_choice_table(layer, topology)
    if layer.replica_choice:  # by weight alone, wherever the replica is
        masks = np.full((len(ids), topology.num_nodes), -1)
        costs = source_costs(layer, topology, ids, problem.seed)
    else:
        masks = visited_nodes(ids, table, layer_id=problem.layer_id, seed=problem.seed)
        costs = np.bitwise_count(masks.view(np.uint64)) - 1.0
    present, unit = np.unique(problem.request[tokens], return_inverse=True)
    cases, kind = np.eye(topology.num_nodes), np.zeros(len(present), np.int64)
    if problem.tokens_dealt:
        cases, case = sources[:1], kind
    elif problem.node_of_request is not None:
        case = kind = problem.node_of_request[present]
    else:
        case = topology.node_of_device[np.arange(len(present)) % topology.num_devices]
    loads, variance = unit_loads(ids, unit, masks, table, cases)
    return Candidate(
        layer=layer,
        peaks=peaks_of_days(loads, variance, topology, case, kind, problem.days),
        traffic=float((costs * sources).sum() / max(1, len(ids))),
    )


def _place(
    problem: LayerProblem,
    ids: npt.NDArray[np.int64],
    sources: npt.NDArray[np.float64],
    noise: npt.NDArray[np.float64],
    copies: npt.NDArray[np.int64],
    room: NodeRoom,
) -> LayerPlacement:
    """Node contents `[N, E]` to devices, weights and node prices, for tokens `[T, k]` from sources `[T, N]`."""
    topology, nodes, layer_id, seed = problem.topology, len(room.slots), problem.layer_id, problem.seed
    # The split over nodes first, as if each were one device: it says what each node computes.
    on_nodes = tuple(tuple(int(n) for n in np.flatnonzero(copies[:, e])) for e in range(problem.experts))
    one_device_a_node = Topology.regular(nodes, 1)

    def at_prices(prices: tuple[float, ...]) -> JointChoiceTable:
        return joint_choice_table(_layer(layer_id, on_nodes, even_weights(on_nodes), prices), one_device_a_node)

    prices, cells, weights = node_prices(
        ids, at_prices, _padded(on_nodes), room.capacity, sources, layer_id=layer_id, seed=seed, thin=1 if problem.serving is None else 3
    )
    by_node = joint_choice_table(_layer(layer_id, on_nodes, _shares(on_nodes, weights), prices), one_device_a_node)
    tokens = PACKING_TOKENS if problem.serving is None else PACKING_TOKENS // 2
    sample = np.arange(tokens) % max(1, len(ids))
    rows = ids[sample]
    drawn = np.random.default_rng(seed).random(tokens)
    source = (sources.cumsum(axis=1)[sample, :-1] <= drawn[:, None]).sum(axis=1)
    computed_on = by_node.choose(layer_id, rows, source, np.arange(len(rows)), seed=seed)
    pairs = max(int((computed_on >= 0).sum()), 1)
    whole = np.maximum(np.bincount(rows[rows >= 0], minlength=problem.experts), 1)

    held = None
    if problem.serving is not None:
        held = np.zeros((topology.num_devices, problem.experts), bool)
        for expert, devices in enumerate(problem.serving.devices_of_expert):
            held[list(devices), expert] = True
    packing = PackingOptions() if held is None else REPACK
    found: list[list[int]] = [[] for _ in range(problem.experts)]
    for node in range(nodes):
        members = topology.devices_of_node(node)
        here = np.where(computed_on == node, rows, -1)
        here = here[(here >= 0).any(axis=1)]
        load = np.bincount(here[here >= 0], minlength=problem.experts).astype(float)
        part = NodeShare(
            copies=copies[node],
            load=load,
            share_here=load / whole,
            rows=here,
            fair=pairs * topology.relative_speed[list(members)] / topology.relative_speed.sum(),
            held=None if held is None else held[list(members)],
        )
        slot = pack_devices(part, problem.slots, noise * topology.num_devices**2, packing, seed)
        for device, experts in zip(members, slot, strict=True):
            for expert in experts:
                if expert >= 0 and device not in found[expert]:
                    found[expert].append(device)
    on_devices = tuple(tuple(devices) for devices in found)
    weights, _ = balance(cells, _padded(on_devices), topology.node_of_device, topology.relative_speed)
    return _primary_first(_layer(layer_id, on_devices, _shares(on_devices, weights), prices))


def _source_weights(problem: LayerProblem) -> npt.NDArray[np.float64]:
    """`[T, N]` chance that each token comes from each node."""
    topology, requests = problem.topology, int(problem.request.max(initial=0)) + 1
    dealt = topology.node_of_device[np.arange(requests) % topology.num_devices]
    if problem.tokens_dealt:
        dealt = topology.node_of_device
    if problem.node_of_request is not None:  # every node gets as many
        dealt = np.arange(topology.num_nodes)
    shares = np.bincount(dealt, minlength=topology.num_nodes) / len(dealt)
    weights: npt.NDArray[np.float64] = np.tile(shares, (len(problem.ids), 1))
    if problem.node_of_request is not None:
        weights *= 1 - TRUST
        weights[np.arange(len(weights)), problem.node_of_request[problem.request]] += TRUST
    return weights


def _padded(devices_of_expert: tuple[tuple[int, ...], ...]) -> npt.NDArray[np.int64]:
    """`[E, R]` devices, -1 = no replica."""
    table = np.full((len(devices_of_expert), max(len(d) for d in devices_of_expert)), -1, dtype=np.int64)
    for expert, devices in enumerate(devices_of_expert):
        table[expert, : len(devices)] = devices
    return table


def _shares(devices_of_expert: tuple[tuple[int, ...], ...], weights: npt.NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    """Weights `[E, R]` as shares of each expert."""
    rows = (weights[expert, : len(devices)] for expert, devices in enumerate(devices_of_expert))
    return tuple(tuple(float(w) for w in row / row.sum()) for row in rows)


def _layer(
    layer_id: int, devices: tuple[tuple[int, ...], ...], weights: tuple[tuple[float, ...], ...], prices: tuple[float, ...]
) -> LayerPlacement:
    return LayerPlacement(layer_id=layer_id, devices_of_expert=devices, replica_weights=weights, node_prices=prices if any(prices) else ())


def _primary_first(layer: LayerPlacement) -> LayerPlacement:
    """The replica of the largest weight is the primary; ties go to the lower device."""
    pairs = [
        sorted(zip(devices, weights, strict=True), key=lambda p: (-p[1], p[0]))
        for devices, weights in zip(layer.devices_of_expert, layer.replica_weights, strict=True)
    ]
    return replace(
        layer,
        devices_of_expert=tuple(tuple(d for d, _ in row) for row in pairs),
        replica_weights=tuple(tuple(w for _, w in row) for row in pairs),
    )
