import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.adapt import Monitor, MonitorOptions
from grace_moe.errors import MismatchError, UsageError


def step(random, tokens, experts=6, layers=2):
    return np.argsort(random.random((tokens, layers, experts)), axis=2)[:, :, :2].astype(np.int16)


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
    sample = monitor.sample()
    assert monitor.memory_bytes == memory
    assert sample.num_tokens == min(capacity, sum(min(len(ids), most, capacity) for ids in seen))
    assert (np.diff(sample.requests) >= 0).all()
    for ids, number in zip(sample.topk_ids, sample.requests, strict=True):
        assert (seen[number] == ids).all(axis=(1, 2)).any()
    assert (monitor.sample(since=2).requests == sample.requests[sample.requests >= 2]).all()


def test_old_tokens_leave_the_sample():
    random = np.random.default_rng(0)
    monitor = Monitor((0, 1), 6, 2, options=MonitorOptions(capacity=64, tokens_per_step=16))
    for number in range(60):
        monitor.observe(step(random, 16), np.full(16, number))
    ages = 59 - monitor.sample().requests
    assert 2 < ages.mean() < 6  # 64 / 16 steps


def test_the_sample_is_a_trace_to_plan_on():
    random = np.random.default_rng(0)
    monitor = Monitor((4, 9), 6, 2)
    monitor.observe(step(random, 8), np.array([5, 5, 7, 7, 7, 9, 9, 9]), np.array([0, 0, 0, 0, 0, 1, 1, 1], np.uint8))
    trace = monitor.sample(model="toy")
    assert (trace.layer_ids, trace.num_experts, trace.model) == ((4, 9), 6, "toy")
    assert trace.requests.tolist() == [5, 5, 7, 7, 7, 9, 9, 9]
    assert trace.phase.tolist() == [0] * 5 + [1] * 3
    assert monitor.tokens_per_step == 8


def test_what_does_not_fit_is_refused():
    with pytest.raises(MismatchError, match=r"\[tokens, 1, 2\]"):
        Monitor((0,), 6, 2).observe(np.zeros((3, 2, 2), np.int16), np.zeros(3, np.int64))
    with pytest.raises(UsageError, match="above 0"):
        MonitorOptions(capacity=0)
