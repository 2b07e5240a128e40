import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.adapt import Monitor, MonitorOptions, merged
from grace_moe.errors import MismatchError, UsageError


def step(random, tokens, experts=6, layers=2):
    return np.argsort(random.random((tokens, layers, experts)), axis=2)[:, :, :2].astype(np.int16)


def test_loads_of_a_half_life_ago_count_half():
    monitor = Monitor((3,), 2, 1, options=MonitorOptions(half_life=4))
    monitor.observe(np.zeros((4, 1, 1), np.int16), phase=np.zeros(4, np.uint8))
    monitor.observe(np.ones((4, 1, 1), np.int16), phase=np.ones(4, np.uint8))
    traffic = monitor.traffic()
    assert traffic.loads.tolist() == [[[2.0, 0.0]], [[0.0, 4.0]]]
    assert traffic.tokens == 6.0
    assert traffic.layer_ids == (3,)


def test_no_choice_is_no_load():
    monitor = Monitor((0,), 3, 2)
    monitor.observe(np.array([[[1, -1]], [[-1, -1]]], np.int16))
    assert monitor.traffic().loads[0].tolist() == [[0.0, 1.0, 0.0]]


def test_loads_alone_are_taken_in_too():
    monitor = Monitor((0,), 2, 1, options=MonitorOptions(half_life=1e12))
    monitor.observe_loads(np.array([[3.0, 1.0]]), 4)
    assert monitor.traffic().loads[0, 0] == pytest.approx([3.0, 1.0])
    assert monitor.tokens_per_step == 4


@given(steps=st.integers(1, 12), capacity=st.integers(1, 40), most=st.integers(1, 20), seed=st.integers(0, 99))
def test_the_sample_is_bounded_and_holds_what_was_seen(steps, capacity, most, seed):
    random = np.random.default_rng(seed)
    monitor = Monitor((0, 1), 6, 2, options=MonitorOptions(capacity=capacity, tokens_per_step=most), seed=seed)
    memory = monitor.memory_bytes
    seen = []
    for number in range(steps):
        ids = step(random, int(random.integers(0, 9)))
        seen.append(ids)
        monitor.observe(ids, np.full(len(ids), number))
    traffic = monitor.traffic()
    assert monitor.memory_bytes == memory
    assert len(traffic.step) == min(capacity, sum(min(len(ids), most, capacity) for ids in seen))
    assert (np.diff(traffic.step) >= 0).all()
    for ids, number, request in zip(traffic.topk_ids, traffic.step, traffic.requests, strict=True):
        assert request == number
        assert (seen[number] == ids).all(axis=(1, 2)).any()


def test_old_tokens_leave_the_sample():
    random = np.random.default_rng(0)
    monitor = Monitor((0, 1), 6, 2, options=MonitorOptions(capacity=64, tokens_per_step=16))
    for _ in range(60):
        monitor.observe(step(random, 16))
    ages = 59 - monitor.traffic().step
    assert 2 < ages.mean() < 6  # 64 / 16 steps


def test_tokens_without_requests_are_requests_of_their_own():
    random = np.random.default_rng(0)
    monitor = Monitor((0, 1), 6, 2)
    monitor.observe(step(random, 5))
    monitor.observe(step(random, 5))
    assert len(np.unique(monitor.traffic().requests)) == 10


def test_the_sample_is_a_trace_to_plan_on():
    random = np.random.default_rng(0)
    monitor = Monitor((4, 9), 6, 2)
    monitor.observe(step(random, 8), np.array([5, 5, 7, 7, 7, 9, 9, 9]), np.array([0, 0, 0, 0, 0, 1, 1, 1], np.uint8))
    trace = monitor.traffic().trace("toy")
    assert (trace.layer_ids, trace.num_experts, trace.model) == ((4, 9), 6, "toy")
    assert trace.requests.tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    halves = [monitor.traffic().of_half(half) for half in (0, 1)]
    assert [half.requests.tolist() for half in halves] == [[5, 5, 9, 9, 9], [7, 7, 7]]


def test_ranks_know_together_what_each_knows():
    random = np.random.default_rng(0)
    monitors = [Monitor((0, 1), 6, 2, seed=rank) for rank in range(3)]
    for monitor in monitors:
        monitor.observe(step(random, 4))
    together = merged([monitor.traffic() for monitor in monitors])
    assert together.loads.sum() == 3 * 4 * 2 * 2
    assert len(together.step) == 12
    with pytest.raises(MismatchError, match="different models"):
        merged([monitors[0].traffic(), Monitor((0,), 6, 2).traffic()])


def test_what_does_not_fit_is_refused():
    with pytest.raises(MismatchError, match=r"\[tokens, 1, 2\]"):
        Monitor((0,), 6, 2).observe(np.zeros((3, 2, 2), np.int16))
    with pytest.raises(UsageError, match="above 0"):
        MonitorOptions(capacity=0)
