"""The descent from what serves: only moves that lower the energy, and the best ones first."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.planning.grace.search.descent import descend
from grace_moe.planning.grace.search.node_copies import NodeLimits, seed_copies
from grace_moe.planning.grace.search.node_state import SearchOptions, energy, node_state

OPTIONS = SearchOptions(imbalance_price=4.0)


@given(nodes=st.integers(2, 4), experts=st.integers(4, 12), seed=st.integers(0, 99), move_price=st.sampled_from([0.0, 0.01, 0.1, 100.0]))
def test_slots_stay_full_no_expert_is_lost_and_the_energy_never_rises(nodes, experts, seed, move_price):
    random = np.random.default_rng(seed)
    ids = np.stack([random.permutation(experts)[:2] for _ in range(60)])
    share = np.bincount(ids.ravel(), minlength=experts) / ids.size
    noise = np.diag(share) / 100
    slots = np.full(nodes, -(-experts // nodes) + 1)
    limits = NodeLimits(slots=slots, devices=np.ones(nodes, np.int64), capacity=np.full(nodes, 1 / nodes))
    start = seed_copies(random.dirichlet(np.ones(experts)), limits)
    options = replace(OPTIONS, move_price=move_price, held=start)
    found = descend(ids, share, noise, limits, options, start, sweeps=3)
    assert found.sum(axis=1).tolist() == start.sum(axis=1).tolist()
    assert found.sum(axis=0).min() >= 1
    assert found.max() <= 1

    def of(copies):
        return energy(node_state(ids, share, noise, limits, options, copies))

    assert of(found) <= of(start) + 1e-9
    if move_price == 100.0:
        assert (found == start).all()


def test_two_experts_that_fire_together_come_together():
    """Tokens choose 0 and 1, or 2 and 3; 0 and 2 are on one node, 1 and 3 on the other: two moves save every copy that can be saved."""
    ids = np.array([[0, 1], [2, 3]] * 20)
    share, noise = np.full(4, 0.25), np.zeros((4, 4))
    limits = NodeLimits(slots=np.array([2, 2]), devices=np.array([1, 1]), capacity=np.array([0.5, 0.5]))
    start = np.array([[1, 0, 1, 0], [0, 1, 0, 1]])
    found = descend(ids, share, noise, limits, replace(OPTIONS, move_price=0.01, held=start), start, sweeps=2)
    assert found[:, 0].tolist() == found[:, 1].tolist() != found[:, 2].tolist() == found[:, 3].tolist()
