"""Re-planning by sampled choices in a process beside the engine: the decisions of the policy itself; a process that ends is told of."""

import os
import signal

import numpy as np
import pytest

pytest.importorskip("torch")

from grace_moe.adapt.beside import start_beside
from grace_moe.adapt.simulate.day import renamed
from grace_moe.engines.live.deciding import DecidingProcess
from grace_moe.engines.live.window_adapter import WindowPolicy
from tests.engines.test_window_adapter import BUDGET, PLAN, TRACE, window

pytestmark = pytest.mark.usefixtures("warm")


@pytest.fixture
def beside():
    process = DecidingProcess()
    yield process
    assert process.close() == 0


def test_it_decides_as_the_policy_does(beside):
    here, random, serving = WindowPolicy(), np.random.default_rng(0), PLAN
    for trace in [TRACE] * 3 + [renamed(TRACE)] * 3:
        seen = window(trace, random)
        found = beside.next(serving, seen, BUDGET)
        assert found == here.next(serving, seen, BUDGET)
        serving = found.placement
    assert serving != PLAN


def test_where_it_has_ended_the_map_stays_and_another_starts(beside, monkeypatch):
    started = []

    def start(module):
        started.append(start_beside(module))
        return started[-1]

    monkeypatch.setattr("grace_moe.engines.live.deciding.start_beside", start)
    seen = window(TRACE, np.random.default_rng(0))
    assert beside.next(PLAN, seen, BUDGET).reason == ""
    os.kill(started[0][0].pid, signal.SIGKILL)
    found = beside.next(PLAN, seen, BUDGET)
    assert (found.placement, found.moved) == (PLAN, 0)
    assert "the process that decides ended (exit code -9)" in found.reason
    assert beside.next(PLAN, seen, BUDGET).reason == ""
    assert len(started) == 2
