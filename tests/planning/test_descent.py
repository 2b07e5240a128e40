"""The descent from what serves: changes of one copy are appraised exactly, and only moves that lower the energy are made."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.planning.grace.search.descent import appraised, best_guesses
from grace_moe.planning.grace.search.node_copies import NodeLimits, seed_copies
from grace_moe.planning.grace.search.node_state import MOVED, SearchOptions, energy, node_state
from grace_moe.planning.grace.search.nodes import priced, try_moves

OPTIONS = SearchOptions(imbalance_price=4.0)


def case(nodes, experts, seed, devices=2, room=0):
    """From copies `[N, E]` to a state of random tokens with two choices, and copies to start from, which leave so many slots free."""
    random = np.random.default_rng(seed)
    ids = np.stack([random.permutation(experts)[:2] for _ in range(60)])
    share = np.bincount(ids.ravel(), minlength=experts) / ids.size
    limits = NodeLimits(slots=np.full(nodes, -(-experts // nodes) + 1), devices=np.full(nodes, devices), capacity=np.full(nodes, 1 / nodes))
    start = seed_copies(random.dirichlet(np.ones(experts)), limits)
    roomy = replace(limits, slots=limits.slots + room)

    def made(copies):
        return node_state(ids, share, np.diag(share) / 100, roomy, replace(OPTIONS, held=start), copies)

    return made, start


sizes = {"nodes": st.integers(2, 6), "experts": st.integers(6, 12), "seed": st.integers(0, 99)}


@given(**sizes)
def test_a_change_of_one_copy_is_worth_what_the_energy_says(nodes, experts, seed):
    made, start = case(nodes, experts, seed, room=1)
    before, worth = energy(made(start)), appraised(made(start))
    random = np.random.default_rng(seed)
    known = np.argwhere(np.isfinite(worth))
    for expert, off, on in random.permutation(known)[:20]:
        copies = np.vstack([start, np.zeros((1, experts), np.int64)])  # the last row is no node
        copies[off, expert] -= 1
        copies[on, expert] += 1
        assert np.isclose(energy(made(copies[:-1])) - before, worth[expert, off, on], atol=1e-9)


@given(**sizes)
def test_what_can_not_be_is_not_appraised(nodes, experts, seed):
    made, start = case(nodes, experts, seed, devices=1)
    worth = appraised(made(start))
    for expert in range(experts):
        for off in range(nodes):
            assert np.isinf(worth[expert, off]).all() == (start[off, expert] == 0)
            assert np.isinf(worth[expert, :, off]).all() == (start[off, expert] == 1)
        assert np.isinf(worth[expert, :nodes, nodes]).all() == (start[:, expert].sum() == 1)


@given(**sizes, move_price=st.sampled_from([0.0, 0.01, 0.1, 100.0]))
def test_slots_stay_full_no_expert_is_lost_and_the_energy_never_rises(nodes, experts, seed, move_price):
    made, start = case(nodes, experts, seed)
    state, first = priced(made(start), move_price), energy(made(start))
    refused = np.empty((0, 5), np.int64)
    for _ in range(3):
        guesses = best_guesses(state, move_price, refused)
        assert not {tuple(move) for move in guesses.moves.tolist()} & {tuple(move) for move in refused.tolist()}
        assert (guesses.saved > move_price).all()
        assert (np.diff(guesses.saved[np.isfinite(guesses.saved)]) <= 0).all()
        refused = np.concatenate([refused, try_moves(state, guesses.moves)])
    found = state.contents.copies
    assert found.sum(axis=1).tolist() == start.sum(axis=1).tolist()
    assert found.sum(axis=0).min() >= 1
    assert found.max() <= 2
    assert state.sums[MOVED] == np.maximum(found - start, 0).sum()
    assert energy(state) <= first + 1e-9
    assert np.isclose(energy(state), energy(made(found)) + move_price * state.sums[MOVED])
    if move_price == 100.0:
        assert (found == start).all()


def test_two_experts_that_fire_together_come_together():
    """Tokens choose 0 and 1, or 2 and 3; 0 and 2 are on one node, 1 and 3 on the other: one swap saves every copy that can be saved."""
    ids = np.array([[0, 1], [2, 3]] * 20)
    share, noise = np.full(4, 0.25), np.zeros((4, 4))
    limits = NodeLimits(slots=np.array([2, 2]), devices=np.array([1, 1]), capacity=np.array([0.5, 0.5]))
    start = np.array([[1, 0, 1, 0], [0, 1, 0, 1]])
    state = node_state(ids, share, noise, limits, replace(OPTIONS, move_price=0.01, held=start), start)
    refused = np.empty((0, 5), np.int64)
    for _ in range(3):  # 0 and 1 seem to gain twice by changing places: that is tried and refused
        guesses = best_guesses(state, 0.01, refused)
        assert set(guesses.loads.tolist()) <= {2}
        refused = np.concatenate([refused, try_moves(state, guesses.moves)])
    found = state.contents.copies
    assert found[:, 0].tolist() == found[:, 1].tolist() != found[:, 2].tolist() == found[:, 3].tolist()
