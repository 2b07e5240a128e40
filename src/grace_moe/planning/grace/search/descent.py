"""Which few moves would save most, from copies that serve: a guess for each slot, made of what single copies save.

First every change of one copy is appraised: one more, one less, or one elsewhere. Two of these make a first guess of a move: of a replaced
copy, or of two copies that change places. Whoever searches then tries the best guesses by the exact energy (`nodes.try_moves`). Annealing
draws moves blindly, and needs many times as many counts of the tokens for as good a placement.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grace_moe.choice.node_sets import NodeSets
from grace_moe.compiled import hot_part, kernel
from grace_moe.planning.grace.search.node_state import Balance, Contents, NodeState, Traffic

CHOICES = 6
"""Guesses of each slot: most slots of a node want the same expert, and all but one of them want another then. Not tuned."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """Moves that no two slots want at once, the best first."""

    moves: Ints
    """`[M, 5]`, as `nodes.NodeMove` has them."""
    saved: Floats
    """`[M]` energy, but for the price of moves, that a move is guessed to save for each copy to load; infinite where it loads none."""
    loads: Ints
    """`[M]` copies that nodes have to load for it, 0 where they have fewer to load than before."""


def best_guesses(state: NodeState, least: float, refused: Ints) -> Guesses:
    """The best moves of each slot, of those that save more than so much for each copy to load.

    Args:
        refused: `[R, 5]` moves not to guess, as the energy has been seen to rise. Two experts that fire together and change places seem
            to come together twice.
    """
    worth = appraised(state)
    contents = state.contents
    node, slot = np.nonzero(np.arange(contents.slot.shape[1]) < state.slots[:, None])
    expert = contents.slot[node, slot]
    replaced, loads_replaced = _replacements(state, worth, node, expert)
    swapped, loads_swapped = _swaps(state, worth, node, expert)
    guess = np.concatenate([replaced, swapped], axis=1)
    guess[_where(state, refused, node, expert)] = np.inf
    loads = np.concatenate([loads_replaced, loads_swapped], axis=1)
    paid = guess + least * loads
    row, best = np.arange(len(node)).repeat(CHOICES), np.argpartition(paid, CHOICES, axis=1)[:, :CHOICES].ravel()
    pays = paid[row, best] < 0
    row, best = row[pays], best[pays]
    guess, loads = guess[row, best], loads[row, best]
    partner = best - replaced.shape[1]
    taken, other = np.where(partner < 0, best, expert[partner]), np.where(partner < 0, node[row], node[partner])
    saved = np.where(loads > 0, -guess / np.maximum(loads, 1), np.inf)
    moves = np.stack([node[row], slot[row], expert[row], taken, other], axis=1)
    order = np.argsort(-saved, kind="stable")
    order = order[_apart(moves[order])]
    return Guesses(moves=moves[order], saved=saved[order], loads=np.maximum(loads[order], 0))


def _where(state: NodeState, moves: Ints, node: Ints, expert: Ints) -> tuple[Ints, Ints]:
    """Rows and columns of the guesses that these moves are, both ways of a swap, where they are possible yet."""
    n, slot, given, taken, other = moves.T
    row = (np.cumsum(state.slots) - state.slots)[n] + slot
    here = expert[row] == given
    swaps = here & (other != n)
    rows, partners = np.nonzero((node == other[:, None]) & (expert == taken[:, None]) & swaps[:, None])
    rows, experts = row[rows], state.contents.copies.shape[1]
    replaces = here & (other == n)
    return np.concatenate([row[replaces], rows, partners]), np.concatenate([taken[replaces], experts + partners, experts + rows])


def _apart(moves: Ints) -> Ints:
    """Those of the moves that want no copy which an earlier one gives or takes."""
    seen: set[tuple[int, int]] = set()
    kept = []
    for index, (n, _, a, b, m) in enumerate(moves.tolist()):
        touched = {(n, a), (n, b), (m, a), (m, b)} if m != n else {(n, a), (n, b)}
        if seen.isdisjoint(touched):
            seen |= touched
            kept.append(index)
    return np.array(kept, dtype=np.int64)


def _replacements(state: NodeState, worth: Floats, node: Ints, expert: Ints) -> tuple[Floats, Ints]:
    """`[S, E]` guess of the energy more where a slot takes another expert, infinite where it can't, and the copies to load for it.

    Args:
        worth: from `appraised`.
        node, expert: `[S]` of every slot.
    """
    contents, balance = state.contents, state.balance
    nodes = len(state.slots)
    guess = worth[:, nodes, :nodes].T[node] + worth[expert, node, nodes][:, None]
    evened = np.outer(balance.share[expert] / contents.total[expert] / balance.capacity[node] ** 2, balance.share / (contents.total + 1))
    guess -= 2 * state.terms.imbalance_price * evened
    guess[np.arange(len(node)), expert] = np.inf
    return guess, _loads_with(contents)[node] - _loads_without(contents)[node, expert][:, None]


def _swaps(state: NodeState, worth: Floats, node: Ints, expert: Ints) -> tuple[Floats, Ints]:
    """`[S, S]` the same where two slots of two nodes swap their experts."""
    contents, balance = state.contents, state.balance
    there = worth[expert, node][:, node]
    part, room = balance.share[expert] / contents.total[expert], 1 / balance.capacity[node] ** 2
    guess = there + there.T - 2 * state.terms.imbalance_price * np.outer(part, part) * (room[:, None] + room)
    guess[expert[:, None] == expert] = np.inf
    loads = _loads_with(contents)[:, expert][node] - _loads_without(contents)[node, expert][:, None]
    return guess, loads + loads.T


def _loads_with(contents: Contents) -> Ints:
    """`[N, E]` copies to load more with one copy more."""
    return (contents.copies >= contents.held).astype(np.int64)


def _loads_without(contents: Contents) -> Ints:
    """`[N, E]` copies to load less with one copy less."""
    return (contents.copies > contents.held).astype(np.int64)


def appraised(state: NodeState) -> Floats:
    """`[E, N + 1, N + 1]` energy more, without the price of moves, with a copy of an expert off the first node and on the second.

    The last row or column is no node. Infinite where there is no such copy, no room for it, or none would be left.
    """
    contents, nodes = state.contents, len(state.slots)
    copies, total = contents.copies.T, contents.total
    off, on = np.ones((len(total), nodes + 1), bool), np.ones((len(total), nodes + 1), bool)
    off[:, :nodes], on[:, :nodes] = copies > 0, copies < state.devices
    possible = off[:, :, None] & on[:, None]
    possible[:, np.arange(nodes + 1), np.arange(nodes + 1)] = False
    possible[total == 1, :nodes, nodes] = False
    expert, away, there = np.nonzero(possible)
    worth = np.full(possible.shape, np.inf)
    worth[possible] = _more_sent(state, expert, away, there) * state.terms.unit + _more_penalty(state, expert, away, there)
    return worth


def _more_penalty(state: NodeState, expert: Ints, away: Ints, there: Ints) -> Floats:
    """`[C]` prices of imbalance and of copies that are too hot, more after each change of one copy."""
    contents, balance, terms = state.contents, state.balance, state.terms
    node = np.arange(len(state.slots))
    total = contents.total[expert] - (away < len(node)) + (there < len(node))
    after = contents.copies[:, expert].T.astype(float) - (away[:, None] == node) + (there[:, None] == node)
    step = after / total[:, None] - balance.part[:, expert].T
    share, pull, noise = balance.share[expert], balance.pull[:, expert].T, balance.noise[expert, expert]
    over = balance.load / balance.capacity - 1
    # Of (over + share * step / capacity)^2 + weight * variance, what is more than before.
    squares = (2 * over + share[:, None] * step / balance.capacity) * share[:, None] * step / balance.capacity
    variance = (2 * pull + step * noise[:, None]) * step / balance.capacity**2
    heat = _heat(balance, total, expert, state) - _heat(balance, contents.total[expert], expert, state)
    more: Floats = terms.imbalance_price * (squares + terms.variance_weight * variance).sum(axis=1) + terms.copy_price * heat
    return more


def _heat(balance: Balance, total: Ints, expert: Ints, state: NodeState) -> Floats:
    """`[C]` as `node_state.too_hot`, for so many copies of an expert."""
    over = np.maximum(balance.share[expert] / total - state.terms.copy_limit, 0) * state.terms.devices
    return over * over * total


def _more_sent(state: NodeState, expert: Ints, away: Ints, there: Ints) -> Ints:
    """`[C]` copies over all tokens and sources that each change of one copy adds; changes in ascending order of experts."""
    contents, nodes = state.contents, len(state.slots)
    bit = np.append(1 << np.arange(nodes), 0)
    last = np.append(contents.copies == 1, np.zeros((1, len(contents.total)), bool), axis=0)[away, expert]
    hosts = np.where(last, contents.hosts[expert] & ~bit[away], contents.hosts[expert]) | bit[there]
    hosts[hosts == contents.hosts[expert]] = -1
    changes = np.searchsorted(expert, np.arange(len(contents.total) + 1))
    more = np.zeros(len(expert), np.int64)
    _count_changes(state.traffic, changes, hosts, more)
    return more


@kernel
def _count_changes(traffic: Traffic, changes: Ints, hosts: Ints, more: Ints) -> None:
    """Fill `more`: `changes[e] : changes[e + 1]` are those of expert e, `hosts` the nodes that hold it after each, -1 = as before."""
    ids, sets = traffic.ids, traffic.sets
    serving = np.empty(sets.meets.shape[1], np.uint64)
    for e in range(len(changes) - 1):
        for p in range(traffic.starts[e], traffic.starts[e + 1]):
            t = traffic.members[p]
            for w in range(len(serving)):
                serving[w] = ~np.uint64(0)
                for j in range(ids.shape[1]):
                    if ids[t, j] != e:
                        serving[w] &= traffic.feasible[ids[t, j], w]
            least = _smallest_with(serving, -1, 0, sets) >> 8
            for c in range(changes[e], changes[e + 1]):
                if hosts[c] >= 0:
                    found = _smallest_with(serving, hosts[c], least, sets)
                    more[c] += sets.holds.shape[0] * (found >> 8) - _bits(found & 255) - traffic.cost[t]


@hot_part
def _smallest_with(serving: npt.NDArray[np.uint64], hosts: int | np.int64, least: int, sets: NodeSets) -> int:
    """Size of the smallest sets of nodes that serve a token, times 256, and the mask of their union (what `cover.token_cost` counts by).

    Args:
        serving: `[W]` sets of nodes that serve all of its experts but one.
        hosts: nodes that hold that one; -1 = it need not be served.
        least: size that the sets have at least.
    """
    if sets.small.shape[0]:
        return int(sets.small[serving[0] if hosts < 0 else serving[0] & sets.meets[hosts, 0]])
    nodes = sets.holds.shape[0]
    for size in range(least, nodes + 1):
        first, last = sets.words[size, 0], sets.words[size, 1]
        union = 0
        for w in range(first, last):
            fits = serving[w] & sets.level[size, w]
            if hosts >= 0:
                fits &= sets.meets[hosts, w]
            if fits:
                for n in range(nodes):
                    if fits & sets.holds[n, w]:
                        union |= 1 << n
        if union or (hosts < 0 and size == 0 and serving[0] & np.uint64(1)):
            return int(size << 8 | union)
    return int(nodes << 8)


@hot_part
def _bits(mask: int) -> int:
    count = 0
    while mask:
        mask &= mask - 1
        count += 1
    return count
