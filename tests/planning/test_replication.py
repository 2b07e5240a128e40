"""Eq. 3, Eq. 4 and polling weights on numbers worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_moe.planning.paper.replication import (
    hot_experts,
    num_replicas,
    polling_weights,
    predict_loads,
    predict_loads_as_printed,
    replicate,
)

LOADS = np.array([6, 3, 2, 1, 2, 1, 1])
GROUPS = ((0, 1, 2, 3), (4, 5), (6,))  # loads 12, 3, 1


@pytest.mark.parametrize(
    ("group_loads", "expected"),
    [
        ([5, 5, 5, 5], 1),  # rho = 1
        ([8, 4, 4, 4], 1),  # rho = 1.6
        ([10, 5, 3, 2], 2),  # rho = 2
        ([6, 0, 0], 2),  # rho = 3, but D - 1 = 2
        ([49, 1, 1, 1, 1, 1, 1, 1], 7),  # rho = 7
        ([7], 0),  # one device
        ([0, 0], 1),
    ],
)
def test_equation_3(group_loads, expected):
    assert num_replicas(np.array(group_loads)) == expected


@pytest.mark.parametrize(
    ("replicas", "expected"),
    [
        (1, (0, 1)),  # more than 12 / 2 = 6: the first carries just 6
        (2, (0, 1)),  # more than 8
        (3, (0, 1, 2)),  # more than 9: the first two carry just 9
    ],
)
def test_hot_experts_are_the_smallest_prefix_over_the_threshold(replicas, expected):
    assert hot_experts(LOADS, GROUPS[0], replicas) == expected


def test_hot_experts_of_an_idle_group():
    assert hot_experts(np.zeros(3, dtype=np.int64), (0, 1, 2), 1) == ()


def test_replicas_go_to_the_least_loaded_devices_and_equation_4_predicts():
    # rho = 12 / (16 / 3) = 2.25: 2 replicas of experts 0 and 1 on devices 2 (load 1) and 1 (load 3).
    result = replicate(LOADS, GROUPS)
    assert result.devices_of_expert == ((0, 2, 1), (0, 2, 1), (0,), (0,), (1,), (1,), (2,))
    # W_r = 9, W_p = 3: 12 - 9 + 3, 3 + 3, 1 + 3.
    assert result.predicted_loads.tolist() == [6, 6, 4]
    assert not result.limited
    # 1/6, 1/4, 1/6 over their sum 7/12.
    assert polling_weights(result.devices_of_expert, result.predicted_loads)[0] == pytest.approx((2 / 7, 3 / 7, 2 / 7))
    assert polling_weights(result.devices_of_expert, result.predicted_loads)[2] == (1.0,)


def test_fixed_replication_makes_one():
    result = replicate(LOADS, GROUPS, replicas=1)
    # W_r = 9, W_p = 4.5 on device 2.
    assert result.devices_of_expert[:3] == ((0, 2), (0, 2), (0,))
    assert result.predicted_loads.tolist() == [7.5, 3, 5.5]


def test_no_replication():
    result = replicate(LOADS, GROUPS, replicas=0)
    assert all(len(devices) == 1 for devices in result.devices_of_expert)
    assert result.predicted_loads.tolist() == [12, 3, 1]


def test_one_device_has_nowhere_to_replicate():
    result = replicate(LOADS, (tuple(range(7)),))
    assert result.devices_of_expert == ((0,),) * 7
    assert replicate(LOADS, (tuple(range(7)),), replicas=1).devices_of_expert == ((0,),) * 7


def test_equal_loads_still_make_one_replica_as_the_formula_says():
    result = replicate(np.array([1, 1]), ((0,), (1,)))
    assert result.devices_of_expert == ((0, 1), (1,))
    assert result.predicted_loads.tolist() == [0.5, 1.5]


def test_slot_limit_takes_the_hottest_that_fit():
    # Device 2 has one slot left: expert 0 only. 6 / 3 a copy of expert 0, 3 / 2 a copy of expert 1.
    result = replicate(LOADS, GROUPS, limits=(4, 4, 2))
    assert result.devices_of_expert[:2] == ((0, 2, 1), (0, 1))
    assert result.predicted_loads.tolist() == [6.5, 6.5, 3]
    assert result.limited


def test_slot_limit_moves_on_to_devices_with_room():
    result = replicate(LOADS, GROUPS, replicas=1, limits=(4, 4, 1))
    assert result.devices_of_expert[:2] == ((0, 1), (0, 1))
    assert result.limited
    full = replicate(LOADS, GROUPS, limits=(4, 2, 1))
    assert all(len(devices) == 1 for devices in full.devices_of_expert)
    assert full.limited


def test_polling_weights_where_devices_are_idle():
    weights = polling_weights(((0, 1, 2), (0,)), np.array([0.0, 0.0, 5.0]))
    assert weights == ((0.5, 0.5, 0.0), (1.0,))


@settings(max_examples=60)
@given(data=st.data())
def test_total_load_is_conserved_and_primaries_stay(data):
    num_devices = data.draw(st.integers(1, 6))
    num_experts = data.draw(st.integers(num_devices, 24))
    loads = np.array(data.draw(st.lists(st.integers(0, 1000), min_size=num_experts, max_size=num_experts)))
    groups = tuple(tuple(range(d, num_experts, num_devices)) for d in range(num_devices))
    limit = data.draw(st.sampled_from([num_experts, max(len(g) for g in groups), max(len(g) for g in groups) + 1]))
    result = replicate(loads, groups, limits=[limit] * num_devices)
    assert result.predicted_loads.sum() == pytest.approx(loads.sum())
    assert [devices[0] for devices in result.devices_of_expert] == [e % num_devices for e in range(num_experts)]
    held = np.bincount([d for devices in result.devices_of_expert for d in devices], minlength=num_devices)
    assert held.max() <= limit
    if limit == num_experts and num_devices > 1 and loads.any():
        # Eq. 4, as docs/method.md#predict-load prints it.
        before = np.array([loads[list(g)].sum() for g in groups])
        hot = [e for e in range(num_experts) if len(result.devices_of_expert[e]) > 1]
        n = num_replicas(before)
        moved = loads[hot].sum()
        expected = before.astype(float)
        expected[before.argmax()] -= moved
        for device in {before.argmax(), *result.devices_of_expert[hot[0]]}:
            expected[device] += moved / (n + 1)
        assert result.predicted_loads == pytest.approx(expected)
        assert moved * (1 + n) > before.max() * n
    for weights in polling_weights(result.devices_of_expert, result.predicted_loads):
        assert sum(weights) == pytest.approx(1)


def test_predict_loads_shares_evenly():
    assert predict_loads(np.array([6, 4]), ((0, 1, 2), (2,)), 3).tolist() == [2, 2, 6]


def test_the_printed_equation_by_hand():
    """Groups of 10 + 2 and 3 and 1; expert 0 also on devices 1 and 2. W_max = 12, W_r = 10, W_p = 12 / 3: 6, 3 + 4, 1 + 4."""
    got = predict_loads_as_printed(np.array([10, 2, 3, 1]), [(0, 1, 2), (0,), (1,), (2,)], 3)
    assert got.tolist() == [6, 7, 5]
    assert predict_loads_as_printed(np.array([4, 2]), [(0,), (1,)], 2).tolist() == [4, 2]
