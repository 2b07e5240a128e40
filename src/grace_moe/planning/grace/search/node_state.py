"""What the search of nodes anneals, and its energy.

Energy, in copies between nodes per token: traffic + price * expected squared imbalance of nodes on routing to come (its mean's square and
its variance) + price * load in copies too hot for one device + price * copies to load, where a placement serves already. Loads assume that
an expert's tokens divide evenly over its copies; the split is solved later (`split`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from grace_moe.choice.cover import feasibility, padded, token_costs, tokens_of_experts
from grace_moe.choice.node_sets import NodeSets, node_sets
from grace_moe.compiled import part
from grace_moe.planning.constants import COPY_CAP, COPY_PRICE, IMBALANCE_PRICE, LONG_HEAT, LONG_PROPOSALS, SWAP_SHARE, VARIANCE_WEIGHT
from grace_moe.planning.grace.search.node_copies import NodeLimits

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How hard to search, and what overload costs."""

    proposals: int = LONG_PROPOSALS
    """Moves tried."""
    hot: float = LONG_HEAT[0]
    """First temperature, in copies per token."""
    cold: float = LONG_HEAT[1]
    """Last temperature."""
    imbalance_price: float = IMBALANCE_PRICE
    """Copies per token that a unit of squared imbalance, summed over nodes, is worth."""
    variance_weight: float = VARIANCE_WEIGHT
    """Weight of the variance beside the square of the mean, against the winner's curse (docs/planner.md#objective)."""
    copy_cap: float = COPY_CAP
    """Load of one copy, over a device's mean load, that is still free."""
    copy_price: float = COPY_PRICE
    """Copies per token that a unit of its square above that, summed over copies, is worth."""
    swap_share: float = SWAP_SHARE
    """Share of the moves that swap where both kinds are possible."""
    move_price: float = 0.0
    """Copies per token that a copy is worth which a node does not hold yet."""
    held: Ints | None = None
    """`[N, E]` copies that the nodes hold, for `move_price`; None = none."""


class Contents(NamedTuple):
    """What is where. N nodes, E experts, S most slots of a node."""

    copies: Ints
    """`[N, E]` of each expert on each node."""
    slot: Ints
    """`[N, S]` expert in each slot."""
    total: Ints
    """`[E]` copies on all nodes."""
    hosts: Ints
    """`[E]` mask of the nodes that hold an expert."""
    held: Ints
    """`[N, E]` copies that the nodes hold already."""


class Balance(NamedTuple):
    """Loads of the nodes, now and after the move that is tried."""

    capacity: Floats
    """`[N]` share of all devices' speed."""
    share: Floats
    """`[E]` of the load."""
    noise: Floats
    """`[E, E]` covariance of the shares."""
    part: Floats
    """`[N, E]` of an expert's load that a node takes."""
    pull: Floats
    """`[N, E]` covariance of an expert's share with the node's load."""
    load: Floats
    """`[N]` share of the load."""
    variance: Floats
    """`[N]` of the load."""
    new_load: Floats
    new_variance: Floats


class Traffic(NamedTuple):
    """Copies that T tokens cost, now and after the move that is tried."""

    ids: npt.NDArray[np.int32]
    """`[T, k]`, E = none."""
    pins: Ints
    """`[T]` source node, -1 = any, all alike."""
    starts: Ints
    """`[E + 1]` expert e's tokens are `members[starts[e] : starts[e + 1]]`."""
    members: npt.NDArray[np.int32]
    sets: NodeSets
    feasible: Words
    """`[E + 1, W]` sets of nodes that serve an expert."""
    known: Words
    """`[W]` for `token_cost` to work in."""
    cost: npt.NDArray[np.uint8]
    """`[T]` copies of a token, summed over source nodes."""
    new_cost: npt.NDArray[np.uint8]


class Terms(NamedTuple):
    """Weights of the energy, and how moves are drawn; see `SearchOptions`."""

    imbalance_price: float
    variance_weight: float
    copy_price: float
    copy_limit: float
    """Share of the load that a copy may take for nothing."""
    devices: float
    """Devices of all nodes."""
    unit: float
    """Copies per token, of one copy over all tokens and source nodes."""
    swap_share: float
    move_price: float


HEAT, PENALTY, SENT, MOVED = 0, 1, 2, 3
"""Sums over the state: load above the limit of a copy, squared; prices of imbalance, of heat and of what moved; `cost` over all tokens;
copies that nodes have to load."""


class NodeState(NamedTuple):
    """What `nodes.search_nodes` anneals."""

    contents: Contents
    balance: Balance
    traffic: Traffic
    terms: Terms
    slots: Ints
    """`[N]`, as `devices` from `NodeLimits`."""
    devices: Ints
    sums: Floats
    """`[4]`: `HEAT`, `PENALTY`, `SENT`, `MOVED`."""
    new_sums: Floats
    solution: Ints
    """`copies`, flat."""
    best: Ints
    """The best of it so far."""
    listed: Ints
    """`[M, 5]` moves to try one after another, as `nodes.NodeMove` has them; empty = moves are drawn."""
    next_listed: Ints
    """`[1]` the next of them."""


def node_state(
    ids: Ints, share: Floats, noise: Floats, limits: NodeLimits, options: SearchOptions, copies: Ints, pins: Ints | None = None
) -> NodeState:
    """The state of the copies `[N, E]`, computed from nothing; arguments as of `search_nodes`."""
    nodes, experts = copies.shape
    copies = np.ascontiguousarray(copies).copy()
    choices = padded(ids, experts)
    sets, devices = node_sets(nodes), int(limits.devices.sum())
    terms = Terms(
        imbalance_price=float(options.imbalance_price),
        variance_weight=float(options.variance_weight),
        copy_price=float(options.copy_price),
        copy_limit=options.copy_cap / devices,
        devices=float(devices),
        unit=1.0 / (max(len(ids), 1) * nodes),
        swap_share=float(options.swap_share),
        move_price=float(options.move_price),
    )
    contents = _contents(copies, int(limits.slots.max()), options.held)
    balance = _balance(copies, share, noise, limits.capacity)
    over = np.maximum(share / contents.total - terms.copy_limit, 0.0) * terms.devices
    heat = float((over * over * contents.total).cumsum()[-1])
    moved = float(np.maximum(copies - contents.held, 0).sum())
    penalty = (
        balance_penalty(balance.load, balance.variance, limits.capacity, terms) + options.copy_price * heat + options.move_price * moved
    )
    sources = np.full(len(ids), -1) if pins is None else pins
    cost = token_costs(choices, sources, contents.hosts, sets)
    traffic = Traffic(
        choices,
        sources,
        *tokens_of_experts(choices, experts),
        sets=sets,
        feasible=feasibility(contents.hosts, sets),
        known=np.empty(sets.meets.shape[1], np.uint64),
        cost=cost,
        new_cost=np.empty_like(cost),
    )
    return NodeState(
        contents=contents,
        balance=balance,
        traffic=traffic,
        terms=terms,
        slots=limits.slots,
        devices=limits.devices,
        sums=np.array([heat, penalty, cost.sum(dtype=np.int64), moved], float),
        new_sums=np.empty(4),
        solution=copies.reshape(-1),
        best=copies.reshape(-1).copy(),
        listed=np.empty((0, 5), np.int64),
        next_listed=np.zeros(1, np.int64),
    )


def _contents(copies: Ints, most_slots: int, held: Ints | None) -> Contents:
    nodes, experts = copies.shape
    slot = np.zeros((nodes, most_slots), np.int64)
    for node, row in enumerate(copies):
        slot[node, : row.sum()] = np.repeat(np.arange(experts), row)
    hosts = ((copies > 0) << np.arange(nodes)[:, None]).sum(axis=0)
    held = np.zeros_like(copies) if held is None else np.ascontiguousarray(held)
    return Contents(copies=copies, slot=slot, total=copies.sum(axis=0), hosts=hosts, held=held)


def _balance(copies: Ints, share: Floats, noise: Floats, capacity: Floats) -> Balance:
    """Sums run in order, as those of the moves do: `cumsum`, as `sum` would add pairwise."""
    part = copies / copies.sum(axis=0)
    pull = part @ noise
    return Balance(
        capacity=capacity,
        share=share,
        noise=noise,
        part=part,
        pull=pull,
        load=(share * part).cumsum(axis=1)[:, -1].copy(),
        variance=(pull * part).cumsum(axis=1)[:, -1].copy(),
        new_load=np.empty(len(copies)),
        new_variance=np.empty(len(copies)),
    )


def energy(state: NodeState) -> float:
    """Of the state, in copies between nodes per token."""
    return float(state.sums[SENT] * state.terms.unit + state.sums[PENALTY])


def balance_penalty(load: Floats, variance: Floats, capacity: Floats, terms: Terms) -> float:
    """Price of the expected squared imbalance, summed over nodes: of loads `[N]`, their variances, and the nodes' shares of speed."""
    total = 0.0
    for n in range(len(load)):
        over = load[n] / capacity[n] - 1.0
        total += over * over + terms.variance_weight * variance[n] / (capacity[n] * capacity[n])
    return terms.imbalance_price * total


def too_hot(share: float, copies: int, terms: Terms) -> float:
    """Square of what each of an expert's copies holds above the limit, in mean device loads, summed over the copies."""
    over = max(share / copies - terms.copy_limit, 0.0) * terms.devices
    return over * over * copies


compiled_balance_penalty = part(balance_penalty)
compiled_too_hot = part(too_hot)
