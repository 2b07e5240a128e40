import numpy as np

from grace_moe.planning.groups.affinity import affinity_matrix, layer_loads
from grace_moe.planning.groups.partition import membership, size_deviation, utilisation
from grace_moe.trace import expert_loads, synthetic_trace

# Four tokens, two choices each; the last token has one choice only.
IDS = np.array([[0, 1], [1, 0], [0, 2], [1, -1]], dtype=np.int16)


def test_affinity_counts_tokens_that_activate_both():
    # 0 and 1 together in two tokens, 0 and 2 in one; 3 is never active.
    assert affinity_matrix(IDS, 4).tolist() == [[0, 2, 1, 0], [2, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_layer_loads_count_tokens_of_each_expert():
    assert layer_loads(IDS, 4).tolist() == [3, 3, 1, 0]


def test_affinity_and_loads_agree_with_the_trace():
    trace = synthetic_trace(tokens=300, layers=2, experts=12, top_k=3)
    for layer in range(2):
        ids = trace.topk_ids[:, layer]
        affinity = affinity_matrix(ids, 12)
        assert affinity.dtype == np.int64
        assert (affinity == affinity.T).all()
        assert not affinity.diagonal().any()
        # A token with k choices adds k - 1 to the row of each expert that it activates.
        assert (affinity.sum(axis=1) == 2 * layer_loads(ids, 12)).all()
        assert (layer_loads(ids, 12) == expert_loads(trace)[layer]).all()


def test_one_choice_a_token_makes_no_affinity():
    assert not affinity_matrix(np.array([[0], [1], [1]], dtype=np.int16), 3).any()


def test_no_tokens_at_all():
    empty = np.empty((0, 2), dtype=np.int16)
    assert not affinity_matrix(empty, 3).any()
    assert layer_loads(empty, 3).tolist() == [0, 0, 0]


def test_utilisation_is_the_share_inside_groups():
    affinity = affinity_matrix(IDS, 4)
    assert utilisation(affinity, ((0, 1), (2, 3))) == 2 / 3
    assert utilisation(affinity, ((0, 1, 2, 3),)) == 1
    assert utilisation(np.zeros((4, 4), dtype=np.int64), ((0, 1), (2, 3))) == 0


def test_membership_and_deviation():
    assert membership(((0, 2), (1,)), 3).tolist() == [[1, 0], [0, 1], [1, 0]]
    # Sizes 6, 4, 4, 2 where 4 are expected: sqrt((4 + 0 + 0 + 4) / 4).
    assert size_deviation([6, 4, 4, 2], 4) == 2**0.5
