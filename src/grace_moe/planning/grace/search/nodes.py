"""Which experts on which node: annealing on the exact objective, under prices on load.

State: copies `[N, E]` of each expert on each node; each node's slots are full. Moves: a slot takes another expert (the old one keeps a
copy elsewhere), or two nodes swap an expert. The energy is that of `node_state`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from grace_moe.choice.compiled import kernel, part
from grace_moe.choice.cover import token_cost
from grace_moe.planning.grace.search.annealing import Cooling, make_anneal
from grace_moe.planning.grace.search.node_copies import NodeRoom
from grace_moe.planning.grace.search.node_state import (
    NodeState,
    SearchOptions,
    compiled_balance_penalty,
    compiled_too_hot,
    energy,
    node_state,
)


class NodeMove(NamedTuple):
    """A slot of a node gives up one expert for another; in a swap, another node makes the opposite exchange."""

    node: int
    """-1 = no move."""
    slot: int
    given: int
    """Expert that leaves the slot."""
    taken: int
    """Expert that comes into it."""
    other: int
    """Node that takes `given` for `taken`; `node` itself where none does."""


def search_nodes(
    ids: npt.NDArray[np.int64],
    share: npt.NDArray[np.float64],
    noise: npt.NDArray[np.float64],
    room: NodeRoom,
    options: SearchOptions,
    seed: int,
    start: npt.NDArray[np.int64],
    pins: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.int64]:
    """Copies `[N, E]` of less energy than `start`.

    Args:
        ids: `[T, k]` of the tokens to judge traffic by, -1 = none.
        share, noise: from `uncertainty.load_shares`.
        pins: `[T]` source node of each token, -1 = any, all alike; None = none is known.
    """
    state = node_state(ids, share, noise, room, options, start, pins)
    cooling = Cooling(proposals=options.proposals, steps=options.proposals - 1, hot=options.hot, cold=options.cold)
    _search(state, energy(state), cooling, seed)
    return state.best.reshape(start.shape)


@part
def _propose(state: NodeState) -> NodeMove:
    copies, devices = state.copies, state.devices
    none = NodeMove(-1, 0, 0, 0, 0)
    n = np.random.randint(copies.shape[0])
    i = np.random.randint(state.slots[n])
    a = state.slot[n, i]
    b = np.random.randint(copies.shape[1])
    if b == a or copies[n, b] >= devices[n]:
        return none
    m = n
    if state.total[a] == 1 or np.random.random() < state.terms.swap_share:
        m = np.random.randint(copies.shape[0])
        if m == n or copies[m, b] == 0 or copies[m, a] >= devices[m]:
            return none
    return NodeMove(n, i, a, b, m)


@part
def _change(state: NodeState, move: NodeMove, most: float) -> float:
    """Of the energy; loads, their variances and tokens' costs after the move are left in the state's `new_` arrays."""
    if move.other == move.node:
        _replaced(state, move)
    else:
        _swapped(state, move)
    terms = state.terms
    penalty = compiled_balance_penalty(state.new_load, state.new_variance, state.capacity, terms) + terms.copy_price * state.new_heat[0]
    more = penalty - state.penalty[0]
    room = most - more  # what is left for traffic
    copies = _more_copies(state, move, room)
    state.new_penalty[0], state.new_sent[0] = penalty, state.sent[0] + copies
    return np.inf if copies * terms.unit > room else copies * terms.unit + more


@part
def _replaced(state: NodeState, move: NodeMove) -> None:
    """Loads, variances and heat of copies after one expert's copy becomes one of another."""
    n, a, b, share, terms = move.node, move.given, move.taken, state.share, state.terms
    total_a, total_b = state.total[a], state.total[b]
    for x in range(state.copies.shape[0]):
        step_a = (state.copies[x, a] - (x == n)) / (total_a - 1) - state.part[x, a]
        step_b = (state.copies[x, b] + (x == n)) / (total_b + 1) - state.part[x, b]
        _shift(state, x, a, b, step_a, step_b)
    heat = state.heat[0]
    heat += compiled_too_hot(share[a], total_a - 1, terms) - compiled_too_hot(share[a], total_a, terms)
    heat += compiled_too_hot(share[b], total_b + 1, terms) - compiled_too_hot(share[b], total_b, terms)
    state.new_heat[0] = heat


@part
def _swapped(state: NodeState, move: NodeMove) -> None:
    """Loads, variances and heat of copies after two nodes swap experts."""
    n, m, a, b = move.node, move.other, move.given, move.taken
    for x in range(state.copies.shape[0]):
        step_a = ((x == m) - (x == n)) / state.total[a]
        step_b = ((x == n) - (x == m)) / state.total[b]
        _shift(state, x, a, b, step_a, step_b)
    state.new_heat[0] = state.heat[0]


@part
def _shift(state: NodeState, x: int, a: int, b: int, step_a: float, step_b: float) -> None:
    """Load and variance of node x when its parts of experts a and b change by so much."""
    noise, pull = state.noise, state.pull
    state.new_load[x] = state.load[x] + state.share[a] * step_a + state.share[b] * step_b
    state.new_variance[x] = (
        state.variance[x]
        + 2 * (step_a * pull[x, a] + step_b * pull[x, b])
        + step_a * step_a * noise[a, a]
        + step_b * step_b * noise[b, b]
        + 2 * step_a * step_b * noise[a, b]
    )


@part
def _hosts_after(state: NodeState, move: NodeMove) -> tuple[int, int]:
    """Masks of the nodes that hold the two experts after the move."""
    n, m, a, b = move.node, move.other, move.given, move.taken
    hosts_a, hosts_b = state.hosts[a], state.hosts[b] | 1 << n
    if state.copies[n, a] == 1:
        hosts_a &= ~(1 << n)
    if m != n:
        hosts_a |= 1 << m
        if state.copies[m, b] == 1:
            hosts_b &= ~(1 << m)
    return hosts_a, hosts_b


@part
def _more_copies(state: NodeState, move: NodeMove, room: float) -> int:
    """Copies over all tokens and sources that the move adds; only so many where those are surely more than there is room for."""
    a, b = move.given, move.taken
    hosts_a, hosts_b = _hosts_after(state, move)
    _set_hosts(state, a, hosts_a)
    _set_hosts(state, b, hosts_b)
    copies, counted = 0, -1
    if hosts_b != state.hosts[b]:
        copies, counted = _recount(state, b, -1, copies, np.inf), b
    if hosts_a != state.hosts[a]:
        # A copy lost only adds copies to send; a swap may also save some.
        copies = _recount(state, a, counted, copies, room if move.other == move.node else np.inf)
    return copies


@part
def _set_hosts(state: NodeState, expert: int, hosts: int) -> None:
    for w in range(state.feasible.shape[1]):
        state.feasible[expert, w] = state.sets.meets[hosts, w]


@part
def _recount(state: NodeState, expert: int, counted: int, copies: int, room: float) -> int:
    """`copies` and those that the expert's tokens now send more, but for the tokens of an expert that is counted; stops beyond the room."""
    tokens = state.tokens
    for p in range(tokens.starts[expert], tokens.starts[expert + 1]):
        t = tokens.members[p]
        if counted >= 0 and _chose(tokens.ids, t, counted):
            continue
        cost = token_cost(tokens.ids, t, state.feasible, tokens.pins[t], state.known, state.sets)
        state.new_cost[t] = cost
        copies += cost - state.cost[t]
        if copies * state.terms.unit > room:
            break
    return copies


@part
def _chose(ids: npt.NDArray[np.int32], token: int, expert: int) -> bool:
    found = False
    for j in range(ids.shape[1]):
        found |= ids[token, j] == expert
    return found


@part
def _apply(state: NodeState, move: NodeMove, energy: float) -> float:
    n, m, a, b = move.node, move.other, move.given, move.taken
    hosts_a, hosts_b = _hosts_after(state, move)
    if hosts_a != state.hosts[a]:
        _keep_costs(state, a)
    if hosts_b != state.hosts[b]:
        _keep_costs(state, b)
    state.hosts[a], state.hosts[b] = hosts_a, hosts_b
    _move_copy(state, n, a, b, move.slot)
    if m != n:
        slot = 0
        while state.slot[m, slot] != b:
            slot += 1
        _move_copy(state, m, b, a, slot)
    else:
        state.total[a] -= 1
        state.total[b] += 1
    for x in range(state.copies.shape[0]):
        state.load[x], state.variance[x] = state.new_load[x], state.new_variance[x]
        _follow(state, x, a, b)
    state.heat[0], state.penalty[0], state.sent[0] = state.new_heat[0], state.new_penalty[0], state.new_sent[0]
    return float(state.sent[0] * state.terms.unit + state.penalty[0])  # without the rounding of a long sum


@part
def _keep_costs(state: NodeState, expert: int) -> None:
    for p in range(state.tokens.starts[expert], state.tokens.starts[expert + 1]):
        t = state.tokens.members[p]
        state.cost[t] = state.new_cost[t]


@part
def _move_copy(state: NodeState, node: int, given: int, taken: int, slot: int) -> None:
    state.slot[node, slot] = taken
    state.copies[node, given] -= 1
    state.copies[node, taken] += 1


@part
def _follow(state: NodeState, x: int, a: int, b: int) -> None:
    """Node x's parts of experts a and b, and their pull on every other's variance, after a move."""
    noise, pull, part = state.noise, state.pull, state.part
    step_a = state.copies[x, a] / state.total[a] - part[x, a]
    step_b = state.copies[x, b] / state.total[b] - part[x, b]
    if step_a != 0.0 or step_b != 0.0:
        for e in range(state.copies.shape[1]):
            pull[x, e] += step_a * noise[a, e] + step_b * noise[b, e]
        part[x, a] += step_a
        part[x, b] += step_b


@part
def _undo(state: NodeState, move: NodeMove) -> None:
    _set_hosts(state, move.given, state.hosts[move.given])
    _set_hosts(state, move.taken, state.hosts[move.taken])


_anneal = make_anneal(_propose, _change, _apply, _undo)


@kernel
def _search(state: NodeState, start: float, cooling: Cooling, seed: int) -> tuple[float, float]:
    return _anneal(state, start, cooling, seed)
