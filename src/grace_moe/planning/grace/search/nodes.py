"""Which experts on which node: annealing on the exact objective, under prices on load.

State: copies `[N, E]` of each expert on each node; each node's slots are full. Moves: a slot takes another expert (the old one keeps a
copy elsewhere), or two nodes swap an expert. The energy is that of `node_state`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from grace_moe.choice.cover import token_cost
from grace_moe.compiled import hot_part, kernel, part
from grace_moe.planning.grace.search.annealing import Cooling, make_anneal
from grace_moe.planning.grace.search.node_copies import NodeLimits
from grace_moe.planning.grace.search.node_state import (
    HEAT,
    MOVED,
    PENALTY,
    SENT,
    Balance,
    Contents,
    NodeState,
    SearchOptions,
    Terms,
    Traffic,
    compiled_balance_penalty,
    compiled_too_hot,
    energy,
    node_state,
)

NO_LIMIT = np.int64(2**62)
"""More copies than there are."""
COLD = 1e-15
"""Temperature, in copies per token, at which no move goes uphill."""


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
    limits: NodeLimits,
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
    state = node_state(ids, share, noise, limits, options, start, pins)
    cooling = Cooling(proposals=options.proposals, steps=options.proposals - 1, hot=options.hot, cold=options.cold)
    _search(state, energy(state), cooling, seed)
    return state.best.reshape(start.shape)


def try_moves(state: NodeState, moves: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Carry out the moves `[M, 5]` (`NodeMove`) that are possible and do not raise the energy, in their order; `[R, 5]` the others."""
    if len(moves):
        state = state._replace(listed=np.ascontiguousarray(moves), next_listed=np.zeros(1, np.int64))
        _search(state, energy(state), Cooling(proposals=len(moves), steps=1, hot=COLD, cold=COLD), 0)
    refused: npt.NDArray[np.int64] = moves[state.contents.slot[moves[:, 0], moves[:, 1]] == moves[:, 2]]
    return refused


def priced(state: NodeState, move_price: float) -> NodeState:
    """The same state (its arrays are shared) at another price of a move."""
    state.sums[PENALTY] += (move_price - state.terms.move_price) * state.sums[MOVED]
    return state._replace(terms=state.terms._replace(move_price=float(move_price)))


@part
def _propose(state: NodeState) -> NodeMove:
    if state.listed.shape[0]:
        return _next_listed(state)
    copies, slot, total = state.contents.copies, state.contents.slot, state.contents.total
    none = NodeMove(-1, 0, 0, 0, 0)
    n = np.random.randint(copies.shape[0])
    i = np.random.randint(state.slots[n])
    a = slot[n, i]
    b = np.random.randint(copies.shape[1])
    if b == a or copies[n, b] >= state.devices[n]:
        return none
    m = n
    if total[a] == 1 or np.random.random() < state.terms.swap_share:
        m = np.random.randint(copies.shape[0])
        if m == n or copies[m, b] == 0 or copies[m, a] >= state.devices[m]:
            return none
    return NodeMove(n, i, a, b, m)


@part
def _next_listed(state: NodeState) -> NodeMove:
    """The next move of the list; none where an earlier one stands in its way."""
    at = state.next_listed[0]
    state.next_listed[0] = at + 1
    n, i, a, b, m = state.listed[at, 0], state.listed[at, 1], state.listed[at, 2], state.listed[at, 3], state.listed[at, 4]
    copies, devices = state.contents.copies, state.devices
    free = state.contents.total[a] > 1 if m == n else copies[m, b] > 0 and copies[m, a] < devices[m]
    possible = free and state.contents.slot[n, i] == a and copies[n, b] < devices[n]
    return NodeMove(n if possible else -1, i, a, b, m)


@part
def _change(state: NodeState, move: NodeMove, most: float) -> float:
    """Of the energy; loads, variances and tokens' costs after the move are left in the `new_` arrays."""
    balance, terms = state.balance, state.terms
    heat = state.sums[HEAT]
    if move.other == move.node:
        heat = _replaced(state.contents, balance, terms, move, heat)
    else:
        _swapped(state.contents, balance, move)
    moved = state.sums[MOVED] + _more_moved(state.contents, move)
    penalty = compiled_balance_penalty(balance.new_load, balance.new_variance, balance.capacity, terms) + terms.copy_price * heat
    penalty += terms.move_price * moved
    more = penalty - state.sums[PENALTY]
    allowance = most - more  # what is left for traffic
    copies = _more_copies(state.contents, state.traffic, move, terms.unit, allowance)
    state.new_sums[HEAT], state.new_sums[PENALTY], state.new_sums[SENT] = heat, penalty, state.sums[SENT] + copies
    state.new_sums[MOVED] = moved
    return np.inf if copies * terms.unit > allowance else float(copies * terms.unit + more)


@part
def _more_moved(contents: Contents, move: NodeMove) -> int:
    """Copies more that nodes have to load after the move."""
    copies, held, n, m, a, b = contents.copies, contents.held, move.node, move.other, move.given, move.taken
    more = (copies[n, b] >= held[n, b]) - (copies[n, a] > held[n, a])
    if m != n:
        more += (copies[m, a] >= held[m, a]) - (copies[m, b] > held[m, b])
    return int(more)


@part
def _replaced(contents: Contents, balance: Balance, terms: Terms, move: NodeMove, heat: float) -> float:
    """Loads and variances after a copy of one expert becomes one of another; the heat of copies after it."""
    n, a, b, share = move.node, move.given, move.taken, balance.share
    total_a, total_b = contents.total[a], contents.total[b]
    for x in range(contents.copies.shape[0]):
        step_a = (contents.copies[x, a] - (x == n)) / (total_a - 1) - balance.part[x, a]
        step_b = (contents.copies[x, b] + (x == n)) / (total_b + 1) - balance.part[x, b]
        _shift(balance, x, a, b, step_a, step_b)
    heat += compiled_too_hot(share[a], total_a - 1, terms) - compiled_too_hot(share[a], total_a, terms)
    heat += compiled_too_hot(share[b], total_b + 1, terms) - compiled_too_hot(share[b], total_b, terms)
    return heat


@part
def _swapped(contents: Contents, balance: Balance, move: NodeMove) -> None:
    """Loads and variances after two nodes swap experts."""
    n, m, a, b = move.node, move.other, move.given, move.taken
    for x in range(contents.copies.shape[0]):
        step_a = ((x == m) - (x == n)) / contents.total[a]
        step_b = ((x == n) - (x == m)) / contents.total[b]
        _shift(balance, x, a, b, step_a, step_b)


@part
def _shift(balance: Balance, x: int, a: int, b: int, step_a: float, step_b: float) -> None:
    """Load and variance of node x when its parts of experts a and b change by so much."""
    noise, pull, share = balance.noise, balance.pull, balance.share
    balance.new_load[x] = balance.load[x] + share[a] * step_a + share[b] * step_b
    balance.new_variance[x] = (
        balance.variance[x]
        + 2 * (step_a * pull[x, a] + step_b * pull[x, b])
        + step_a * step_a * noise[a, a]
        + step_b * step_b * noise[b, b]
        + 2 * step_a * step_b * noise[a, b]
    )


@part
def _hosts_after(contents: Contents, move: NodeMove) -> tuple[int, int]:
    """Masks of the nodes that hold the two experts after the move."""
    n, m, a, b = move.node, move.other, move.given, move.taken
    hosts_a, hosts_b = contents.hosts[a], contents.hosts[b] | 1 << n
    if contents.copies[n, a] == 1:
        hosts_a &= ~(1 << n)
    if m != n:
        hosts_a |= 1 << m
        if contents.copies[m, b] == 1:
            hosts_b &= ~(1 << m)
    return hosts_a, hosts_b


@part
def _more_copies(contents: Contents, traffic: Traffic, move: NodeMove, unit: float, allowance: float) -> np.int64:
    """Copies over all tokens and sources that the move adds; only so many where those are surely more than the allowance."""
    a, b = move.given, move.taken
    hosts_a, hosts_b = _hosts_after(contents, move)
    _set_hosts(traffic, a, hosts_a)
    _set_hosts(traffic, b, hosts_b)
    copies, counted = np.int64(0), np.int64(-1)
    if hosts_b != contents.hosts[b]:
        copies, counted = _recount(traffic, b, counted, copies, NO_LIMIT), np.int64(b)
    if hosts_a != contents.hosts[a]:
        # A copy lost only adds copies to send; a swap may also save some.
        limit = NO_LIMIT if move.other != move.node else np.int64(min(max(allowance / unit, -1.0), 2.0**62)) + 1
        copies = _recount(traffic, a, counted, copies, limit)
    return copies


@part
def _set_hosts(traffic: Traffic, expert: int, hosts: int) -> None:
    for w in range(traffic.feasible.shape[1]):
        traffic.feasible[expert, w] = traffic.sets.meets[hosts, w]


@part
def _recount(traffic: Traffic, expert: int, counted: np.int64, copies: np.int64, limit: np.int64) -> np.int64:
    """`copies` and those that the expert's tokens now send more, but for the tokens of an expert that is counted; stops above the limit."""
    for p in range(traffic.starts[expert], traffic.starts[expert + 1]):
        t = np.int64(traffic.members[p])
        if counted >= 0 and _chose(traffic.ids, t, counted):
            continue
        cost = token_cost(traffic.ids, t, traffic.feasible, traffic.pins[t], traffic.known, traffic.sets)
        traffic.new_cost[t] = cost
        copies += cost - traffic.cost[t]
        if copies > limit:
            break
    return copies


@hot_part
def _chose(ids: npt.NDArray[np.int32], token: np.int64, expert: np.int64) -> bool:
    found = False
    for j in range(ids.shape[1]):
        found |= ids[token, j] == expert
    return found


@part
def _apply(state: NodeState, move: NodeMove, energy: float) -> float:
    n, m, a, b, contents = move.node, move.other, move.given, move.taken, state.contents
    hosts_a, hosts_b = _hosts_after(contents, move)
    if hosts_a != contents.hosts[a]:
        _keep_costs(state.traffic, a)
    if hosts_b != contents.hosts[b]:
        _keep_costs(state.traffic, b)
    contents.hosts[a], contents.hosts[b] = hosts_a, hosts_b
    _move_copy(contents, n, a, b, move.slot)
    if m != n:
        slot = 0
        while contents.slot[m, slot] != b:
            slot += 1
        _move_copy(contents, m, b, a, slot)
    else:
        contents.total[a] -= 1
        contents.total[b] += 1
    _follow(contents, state.balance, a, b)
    for i in range(4):
        state.sums[i] = state.new_sums[i]
    return float(state.sums[SENT] * state.terms.unit + state.sums[PENALTY])  # without the rounding of a long sum


@part
def _keep_costs(traffic: Traffic, expert: int) -> None:
    for p in range(traffic.starts[expert], traffic.starts[expert + 1]):
        t = traffic.members[p]
        traffic.cost[t] = traffic.new_cost[t]


@part
def _move_copy(contents: Contents, node: int, given: int, taken: int, slot: int) -> None:
    contents.slot[node, slot] = taken
    contents.copies[node, given] -= 1
    contents.copies[node, taken] += 1


@part
def _follow(contents: Contents, balance: Balance, a: int, b: int) -> None:
    """Loads, the nodes' parts of experts a and b, and their pull on every other's variance, after a move."""
    noise, pull, parts = balance.noise, balance.pull, balance.part
    for x in range(parts.shape[0]):
        balance.load[x], balance.variance[x] = balance.new_load[x], balance.new_variance[x]
        step_a = contents.copies[x, a] / contents.total[a] - parts[x, a]
        step_b = contents.copies[x, b] / contents.total[b] - parts[x, b]
        if step_a != 0.0 or step_b != 0.0:
            for e in range(parts.shape[1]):
                pull[x, e] += step_a * noise[a, e] + step_b * noise[b, e]
            parts[x, a] += step_a
            parts[x, b] += step_b


@part
def _undo(state: NodeState, move: NodeMove) -> None:
    hosts = state.contents.hosts
    _set_hosts(state.traffic, move.given, hosts[move.given])
    _set_hosts(state.traffic, move.taken, hosts[move.taken])


_anneal = make_anneal(_propose, _change, _apply, _undo)


@kernel
def _search(state: NodeState, start: float, cooling: Cooling, seed: int) -> tuple[float, float]:
    return _anneal(state, start, cooling, seed)
