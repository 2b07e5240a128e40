"""Which experts on which node, by the best move of each slot: a descent from what serves, where few moves are wanted and each must pay.

A sweep first appraises what every single copy saves or would save. Two of these make a first guess of a move: of a replaced copy, or of two
copies that change places. Each slot in turn then makes the move of its best guess, where the exact energy (`node_state`) falls. Annealing
draws moves blindly, and needs many times as many counts of the tokens for as good a placement.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from grace_moe.compiled import kernel, part
from grace_moe.planning.grace.search.node_copies import NodeLimits
from grace_moe.planning.grace.search.node_state import (
    HEAT,
    MOVED,
    PENALTY,
    NodeState,
    SearchOptions,
    compiled_balance_penalty,
    compiled_too_hot,
    energy,
    node_state,
)
from grace_moe.planning.grace.search.nodes import NO_LIMIT, NodeMove, apply, change, more_moved, recount, set_hosts, undo

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Appraisal(NamedTuple):
    """Change of the energy where one expert has a copy more, less, or elsewhere, without the price of moves; N nodes, E experts."""

    added: Floats
    """`[N, E]` a copy on a node."""
    dropped: Floats
    """`[N, E]` a copy off a node."""
    shifted: Floats
    """`[N, N, E]` a copy from the first node to the second."""


def descend(
    ids: Ints,
    share: Floats,
    noise: Floats,
    limits: NodeLimits,
    options: SearchOptions,
    start: Ints,
    *,
    sweeps: int,
) -> Ints:
    """Copies `[N, E]` of less energy than `start`, or those; arguments as of `nodes.search_nodes`.

    Args:
        sweeps: most times that all slots are gone through.
    """
    nodes, experts = start.shape
    state = node_state(ids, share, noise, limits, options, start)
    worth = Appraisal(*(np.zeros((*shape, experts)) for shape in ((nodes,), (nodes,), (nodes, nodes))))
    _descend(state, worth, energy(state), sweeps)
    return state.solution.reshape(start.shape)


@kernel
def _descend(state: NodeState, worth: Appraisal, energy: float, sweeps: int) -> float:
    for _ in range(sweeps):
        _appraise(state, worth)
        before = energy
        for n in range(state.slots.shape[0]):
            for i in range(state.slots[n]):
                move = _best_guess(state, worth, n, i)
                if move.node < 0:
                    continue
                more = change(state, move, 0.0)
                if more < 0:
                    energy = apply(state, move, energy + more)
                else:
                    undo(state, move)
        if energy >= before:
            break
    return energy


@part
def _appraise(state: NodeState, worth: Appraisal) -> None:
    contents = state.contents
    nodes, experts = contents.copies.shape
    for e in range(experts):
        for n in range(nodes):
            worth.added[n, e] = _more_with(state, e, -1, n)
            if contents.copies[n, e] == 0:
                continue
            if contents.total[e] > 1:
                worth.dropped[n, e] = _more_with(state, e, n, -1)
            for m in range(nodes):
                if m != n:
                    worth.shifted[n, m, e] = _more_with(state, e, n, m)


@part
def _more_with(state: NodeState, e: int, off: int, on: int) -> float:
    """Energy more with a copy of expert e taken off one node and put on another, -1 = none."""
    contents, balance, terms = state.contents, state.balance, state.terms
    total = contents.total[e] - (off >= 0) + (on >= 0)
    for x in range(contents.copies.shape[0]):
        step = (contents.copies[x, e] - (x == off) + (x == on)) / total - balance.part[x, e]
        balance.new_load[x] = balance.load[x] + balance.share[e] * step
        balance.new_variance[x] = balance.variance[x] + 2 * step * balance.pull[x, e] + step * step * balance.noise[e, e]
    heat = (
        state.sums[HEAT] + compiled_too_hot(balance.share[e], total, terms) - compiled_too_hot(balance.share[e], contents.total[e], terms)
    )
    penalty = compiled_balance_penalty(balance.new_load, balance.new_variance, balance.capacity, terms) + terms.copy_price * heat
    more = penalty - (state.sums[PENALTY] - terms.move_price * state.sums[MOVED])
    hosts = contents.hosts[e]
    others = hosts
    if off >= 0 and contents.copies[off, e] == 1:
        others &= ~(1 << off)
    if on >= 0:
        others |= 1 << on
    if others != hosts:
        set_hosts(state.traffic, e, others)
        more += terms.unit * recount(state.traffic, e, np.int64(-1), np.int64(0), NO_LIMIT)
        set_hosts(state.traffic, e, hosts)
    return float(more)


@part
def _best_guess(state: NodeState, worth: Appraisal, n: int, i: int) -> NodeMove:
    """The move of a slot that is guessed to lower the energy most; none where no move is."""
    contents, copies = state.contents, state.contents.copies
    a = contents.slot[n, i]
    best, least = NodeMove(-1, 0, 0, 0, 0), 0.0
    for b in range(copies.shape[1]):
        if b == a or copies[n, b] >= state.devices[n]:
            continue
        for m in range(copies.shape[0]):
            if m == n and contents.total[a] > 1:
                guess = worth.added[n, b] + worth.dropped[n, a]
            elif m != n and copies[m, b] > 0 and copies[m, a] < state.devices[m]:
                guess = worth.shifted[n, m, a] + worth.shifted[m, n, b]
            else:
                continue
            move = NodeMove(n, i, a, b, m)
            guess += state.terms.move_price * more_moved(contents, move)
            if guess < least + _evened(state, move):
                best, least = move, guess - _evened(state, move)
    return best


@part
def _evened(state: NodeState, move: NodeMove) -> float:
    """By how much the squared imbalance is less than two changes would make it apart: what comes makes up for what goes."""
    balance, total = state.balance, state.contents.total
    a, b, n, m = move.given, move.taken, move.node, move.other
    both = balance.share[a] / total[a] * balance.share[b] / (total[b] + (m == n))
    nodes = 1 / balance.capacity[n] ** 2 + (m != n) / balance.capacity[m] ** 2
    return float(2 * state.terms.imbalance_price * both * nodes)
