"""Steps 6 to 10: one layer at one price of imbalance, from routing to devices and weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from grace_moe.choice.node_sets import MAX_EXACT_NODES
from grace_moe.placement import LayerPlacement
from grace_moe.planning.constants import FLAT_DEVICE_PRICES, POLISH_TOKENS, SEARCH_TOKENS
from grace_moe.planning.grace.device_packing import pack_nodes, refill_nodes
from grace_moe.planning.grace.node_prices import NodePlan, price_nodes
from grace_moe.planning.grace.predicted_choice import pairs_apart
from grace_moe.planning.grace.problem import LayerProblem, source_chances
from grace_moe.planning.grace.replica_shares import Hosts, host_table, layer_of_weights, primary_first
from grace_moe.planning.grace.schedule import AGAIN, FROM_START, LONG, REPLAN, SHORT
from grace_moe.planning.grace.search.node_copies import NodeLimits, seed_copies
from grace_moe.planning.grace.search.node_groups import search_many_nodes
from grace_moe.planning.grace.search.node_state import SearchOptions
from grace_moe.planning.grace.search.nodes import search_nodes
from grace_moe.planning.grace.split import even_out
from grace_moe.planning.grace.uncertainty import load_shares


def place_layer(
    problem: LayerProblem, price_step: int, copies: npt.NDArray[np.int64] | None
) -> tuple[LayerPlacement, npt.NDArray[np.int64]]:
    """A placement at `price_step` times the price of imbalance, and the copies `[N, E]` on its nodes; deterministic.

    Args:
        copies: found at the last price, to go on from; None = at the first price.
    """
    # Step 6: how the load divides over experts, and how far it may stray.
    share, covariance = loads_of(problem)
    # Step 7: which experts on which node.
    copies = search_copies(problem, price_step, copies, share, covariance)
    return place_on_devices(problem, copies, covariance), copies


def other_finishes(problem: LayerProblem, copies: npt.NDArray[np.int64]) -> list[LayerPlacement]:
    """The same copies on the nodes, by other ways through steps 8 to 10; only where what is sent depends on them.

    A copy for every device: then devices of a node are worth as much as nodes, against balance, and replicas are near or chosen jointly.
    """
    if problem.sends != "devices":
        return []
    _, covariance = loads_of(problem)
    ways = [(choice, price) for price in FLAT_DEVICE_PRICES for choice in ("", "tar")]
    return [
        place_on_devices(replace(problem, replica_choice=choice, device_price=price), copies, covariance)
        for choice, price in ways
        if (choice, price) != (problem.replica_choice, problem.device_price)
    ]


def loads_of(problem: LayerProblem) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Shares and covariance of the experts' loads."""
    share, covariance = load_shares(problem.ids, problem.unit, problem.experts, problem.node_of_request)
    return share, np.zeros_like(covariance) if problem.loads_certain else covariance


def place_on_devices(problem: LayerProblem, copies: npt.NDArray[np.int64], covariance: npt.NDArray[np.float64]) -> LayerPlacement:
    """Steps 8 to 10: the copies `[N, E]` of the nodes on their devices, with weights.

    Args:
        covariance: `[E, E]` of the experts' shares of the load.
    """
    many = sample(problem, POLISH_TOKENS)
    ids, sources = problem.ids[many], source_chances(problem)[many]
    # Step 8: prices of the nodes, so that ties between sets of nodes even out the nodes' loads.
    plan = price_nodes(problem, ids, sources, copies)
    # Step 9: which of a node's experts on which of its devices.
    hosts = pack_nodes(problem, ids, sources, copies, plan.layer, covariance)
    return _with_weights(problem, plan, hosts)


def refit(problem: LayerProblem, copies: npt.NDArray[np.int64]) -> LayerPlacement:
    """The copies `[N, E]` of the nodes on their devices while a model serves: no copy moves inside a node, prices and weights are new."""
    many = sample(problem, POLISH_TOKENS)
    plan = price_nodes(problem, problem.ids[many], source_chances(problem)[many], copies)
    return _with_weights(problem, plan, refill_nodes(problem, copies, plan.loads))


def _with_weights(problem: LayerProblem, plan: NodePlan, hosts: Hosts) -> LayerPlacement:
    """Step 10: how each expert's tokens divide among its replicas."""
    topology = problem.topology
    weights, _ = even_out(plan.cells, host_table(hosts), topology.node_of_device, topology.relative_speed)
    return primary_first(layer_of_weights(problem.layer_id, hosts, weights, plan.prices, problem.replica_choice))


def search_copies(
    problem: LayerProblem,
    price_step: int,
    copies: npt.NDArray[np.int64] | None,
    share: npt.NDArray[np.float64],
    covariance: npt.NDArray[np.float64],
) -> npt.NDArray[np.int64]:
    """`[N, E]` copies of each expert on each node, by one or two searches.

    Args:
        copies: to go on from; None = from those that serve, else from nothing.
    """
    topology = problem.topology
    limits = node_limits(problem)
    searches = _searches(problem, first=copies is None)
    if copies is None:
        copies = seed_copies(share, limits) if problem.start is None else problem.start
    if topology.num_nodes == 1:
        return copies
    search = search_nodes if topology.num_nodes <= MAX_EXACT_NODES else search_many_nodes
    pins = None if problem.node_of_request is None else problem.node_of_request[problem.unit]
    for count, schedule in searches:
        tokens = sample(problem, count)
        ids = problem.ids[tokens]
        options = replace(
            schedule,
            proposals=int(schedule.proposals * problem.effort),
            imbalance_price=problem.imbalance_price * price_step,
            move_price=problem.move_price,
            held=problem.start if problem.move_price else None,
        )
        if problem.apart:
            token, ids = pairs_apart(ids)
            options, tokens = _per_pair(options, len(ids) / max(1, len(tokens))), tokens[token]
        pinned = None
        if pins is not None:
            ids, pinned = placed_or_not(ids, pins[tokens])
        copies = search(ids, share, covariance, limits, options, problem.seed, copies, pinned)
    return copies


def placed_or_not(ids: npt.NDArray[np.int64], pins: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Every token twice: from the node of its request, and from anywhere (-1), as where a front-end fails."""
    return np.concatenate([ids, ids]), np.concatenate([pins, np.full(len(pins), -1)])


def node_limits(problem: LayerProblem) -> NodeLimits:
    """What the nodes have room for."""
    topology = problem.topology
    devices = np.array([len(node.devices) for node in topology.nodes], dtype=np.int64)
    speed = topology.relative_speed
    return NodeLimits(
        slots=np.minimum(devices * problem.slots, devices * problem.experts),
        devices=devices,
        capacity=np.bincount(topology.node_of_device, weights=speed) / speed.sum(),
    )


def _per_pair(options: SearchOptions, pairs: float) -> SearchOptions:
    """The same prices and temperatures, in copies per pair instead of copies per token.

    Args:
        pairs: of a token, on average.
    """
    pairs = max(pairs, 1e-9)
    return replace(
        options,
        hot=options.hot / pairs,
        cold=options.cold / pairs,
        imbalance_price=options.imbalance_price / pairs,
        copy_price=options.copy_price / pairs,
        move_price=options.move_price / pairs,
    )


def _searches(problem: LayerProblem, *, first: bool) -> list[tuple[int, SearchOptions]]:
    """Tokens to judge by, and how hard to try, of one search after another.

    Args:
        first: whether no search of this layer has gone before, at a lower price.
    """
    if problem.serving is not None:
        return [(SEARCH_TOKENS, REPLAN)]
    if not first:
        return [(SEARCH_TOKENS, AGAIN)]
    if problem.start is not None:
        return [(POLISH_TOKENS, FROM_START)]
    return [(SEARCH_TOKENS, LONG), (POLISH_TOKENS, SHORT)]


def sample(problem: LayerProblem, tokens: int) -> npt.NDArray[np.int64]:
    """Tokens of the layer in random order; a smaller sample is the beginning of a larger one."""
    return np.random.default_rng(problem.seed).permutation(len(problem.ids))[:tokens]
