"""What the search of nodes anneals, and its energy.

Energy, in copies between nodes per token: traffic + price * expected squared imbalance of nodes on routing to come (its mean's square and
its variance) + price * load in copies too hot for one device. Loads assume that an expert's tokens divide evenly over its copies; the split
is solved later (`split`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from grace_moe.choice.compiled import kernel, part
from grace_moe.choice.cover import feasibility, padded, token_cost, tokens_of_experts
from grace_moe.choice.node_sets import NodeSets, node_sets
from grace_moe.planning.grace.search.node_copies import NodeRoom

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How hard to search, and what overload costs."""

    proposals: int = 150_000
    """Moves tried."""
    hot: float = 0.008
    """First temperature, in copies per token."""
    cold: float = 1e-4
    """Last temperature."""
    price: float = 4.0
    """Copies per token that a unit of squared imbalance, summed over nodes, is worth."""
    doubt: float = 3.0
    """Weight of the variance beside the square of the mean: a search finds what looks steady in its sample."""
    copy_cap: float = 0.8
    """Load of one copy, over a device's mean load, that is still free."""
    copy_price: float = 1.0
    """Copies per token that a unit of its square above that, summed over copies, is worth."""
    swap_share: float = 0.3
    """Share of the moves that swap where both kinds are possible."""


class Tokens(NamedTuple):
    """T tokens that the search judges traffic by. E experts."""

    ids: npt.NDArray[np.int32]
    """`[T, k]`, E = none."""
    pins: Ints
    """`[T]` source node, -1 = any, all alike."""
    starts: Ints
    """`[E + 1]` expert e's tokens are `members[starts[e] : starts[e + 1]]`."""
    members: npt.NDArray[np.int32]


class Terms(NamedTuple):
    """Weights of the energy, and how moves are drawn; see `SearchOptions`."""

    price: float
    doubt: float
    copy_price: float
    copy_limit: float
    """Share of the load that a copy may take for nothing."""
    devices: float
    """Devices of all nodes."""
    unit: float
    """Copies per token, of one copy over all tokens and source nodes."""
    swap_share: float


class NodeState(NamedTuple):
    """N nodes, E experts, S most slots of a node. Arrays `[1]` hold a number that changes."""

    tokens: Tokens
    sets: NodeSets
    terms: Terms
    slots: Ints
    """`[N]`, as `devices` and `capacity` from `NodeRoom`."""
    devices: Ints
    capacity: Floats
    share: Floats
    """`[E]` of the load."""
    noise: Floats
    """`[E, E]` covariance of the shares."""
    copies: Ints
    """`[N, E]` of each expert on each node."""
    slot: Ints
    """`[N, S]` expert in each slot."""
    total: Ints
    """`[E]` copies on all nodes."""
    hosts: Ints
    """`[E]` mask of the nodes that hold an expert."""
    feasible: Words
    """`[E + 1, W]` sets of nodes that serve an expert."""
    part: Floats
    """`[N, E]` of an expert's load that a node takes."""
    pull: Floats
    """`[N, E]` covariance of an expert's share with the node's load."""
    load: Floats
    """`[N]` share of the load."""
    variance: Floats
    """`[N]` of the load."""
    cost: npt.NDArray[np.uint8]
    """`[T]` copies of a token, summed over source nodes."""
    heat: Floats
    """`[1]` what copies hold above the limit, squared, summed over copies."""
    penalty: Floats
    """`[1]` price of imbalance and heat."""
    sent: Ints
    """`[1]` sum of `cost`."""
    new_load: Floats
    new_variance: Floats
    new_cost: npt.NDArray[np.uint8]
    new_heat: Floats
    new_penalty: Floats
    new_sent: Ints
    known: Words
    """`[W]` for `token_cost` to work in."""
    solution: Ints
    """`copies`, flat."""
    best: Ints
    """The best of it so far."""


def node_state(
    ids: Ints, share: Floats, noise: Floats, room: NodeRoom, options: SearchOptions, copies: Ints, pins: Ints | None = None
) -> NodeState:
    """The state of the copies `[N, E]`, computed from nothing; arguments as of `search_nodes`."""
    nodes, experts = copies.shape
    copies = np.ascontiguousarray(copies).copy()
    choices = padded(ids, experts)
    sets, devices = node_sets(nodes), int(room.devices.sum())
    terms = Terms(
        price=float(options.price),
        doubt=float(options.doubt),
        copy_price=float(options.copy_price),
        copy_limit=options.copy_cap / devices,
        devices=float(devices),
        unit=1.0 / (max(len(ids), 1) * nodes),
        swap_share=float(options.swap_share),
    )
    total = copies.sum(axis=0)
    hosts = ((copies > 0) << np.arange(nodes)[:, None]).sum(axis=0)
    parts = copies / total
    pull = parts @ noise
    slot = np.zeros((nodes, int(room.slots.max())), np.int64)
    for node, row in enumerate(copies):
        slot[node, : row.sum()] = np.repeat(np.arange(experts), row)
    # Sums run in order, as those of the moves do: `cumsum`, as `sum` would pair.
    load, variance = (share * parts).cumsum(axis=1)[:, -1], (pull * parts).cumsum(axis=1)[:, -1]
    heat = sum(too_hot(s, n, terms) for s, n in zip(share, total, strict=True))
    penalty = balance_penalty(load, variance, room.capacity, terms) + options.copy_price * heat
    tokens = Tokens(choices, np.full(len(ids), -1) if pins is None else pins, *tokens_of_experts(choices, experts))
    feasible, known = feasibility(hosts, sets), np.empty(sets.meets.shape[1], np.uint64)
    cost = np.empty(len(ids), np.uint8)
    count_copies(tokens, feasible, known, sets, cost)
    return NodeState(
        tokens=tokens,
        sets=sets,
        terms=terms,
        slots=room.slots,
        devices=room.devices,
        capacity=room.capacity,
        share=share,
        noise=noise,
        copies=copies,
        slot=slot,
        total=total,
        hosts=hosts,
        feasible=feasible,
        part=parts,
        pull=pull,
        load=load,
        variance=variance,
        cost=cost,
        heat=np.array([heat]),
        penalty=np.array([penalty]),
        sent=np.array([cost.sum(dtype=np.int64)]),
        new_load=np.empty(nodes),
        new_variance=np.empty(nodes),
        new_cost=np.empty_like(cost),
        new_heat=np.empty(1),
        new_penalty=np.empty(1),
        new_sent=np.empty(1, np.int64),
        known=known,
        solution=copies.reshape(-1),
        best=copies.reshape(-1).copy(),
    )


def energy(state: NodeState) -> float:
    """Of the state, in copies between nodes per token."""
    return float(state.sent[0] * state.terms.unit + state.penalty[0])


@kernel
def count_copies(
    tokens: Tokens, feasible: npt.NDArray[np.uint64], known: npt.NDArray[np.uint64], sets: NodeSets, cost: npt.NDArray[np.uint8]
) -> None:
    """Fill `cost` `[T]` with the copies of each token, summed over source nodes."""
    for t in range(len(cost)):
        cost[t] = token_cost(tokens.ids, t, feasible, tokens.pins[t], known, sets)


def balance_penalty(load: Floats, variance: Floats, capacity: Floats, terms: Terms) -> float:
    """Price of the expected squared imbalance, summed over nodes: of loads `[N]`, their variances, and the nodes' shares of speed."""
    total = 0.0
    for n in range(len(load)):
        over = load[n] / capacity[n] - 1.0
        total += over * over + terms.doubt * variance[n] / (capacity[n] * capacity[n])
    return terms.price * total


def too_hot(share: float, copies: int, terms: Terms) -> float:
    """Square of what each of an expert's copies holds above the limit, in mean device loads, summed over the copies."""
    over = max(share / copies - terms.copy_limit, 0.0) * terms.devices
    return over * over * copies


compiled_balance_penalty = part(balance_penalty)
compiled_too_hot = part(too_hot)
