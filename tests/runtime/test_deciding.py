"""The process that decides, fed with steps as rank 0 feeds it."""

import json
from pathlib import Path
from time import sleep

import numpy as np
import pytest

pytest.importorskip("torch")

from grace_moe.adapt import AdaptOptions, DecisionOptions, Prices
from grace_moe.adapt.simulate.day import renamed
from grace_moe.planning import plan
from grace_moe.runtime.migration.decider import DecidingProcess
from grace_moe.runtime.model.choice_sampler import SampledStep
from grace_moe.topology import Topology
from grace_moe.trace import synthetic_trace

pytestmark = pytest.mark.usefixtures("warm")

TRACE = synthetic_trace(tokens=1600, layers=2, experts=16, top_k=2, requests=200, clusters=4, affinity=0.9, seed=1)
OPTIONS = AdaptOptions(decision=DecisionOptions(prices=Prices(move=1.0, local_move=0.1), budget=1.0, effort=0.2))


def step_of(trace, random):
    rows = [np.flatnonzero(trace.requests == request) for request in random.integers(200, size=32)]
    ids = trace.topk_ids[np.concatenate(rows)]
    numbers = np.repeat(random.integers(1 << 30, size=32), [len(row) for row in rows])
    return SampledStep(topk_ids=ids, request_ids=numbers, phase=0, tokens=len(ids))


def followed_until(done, log):
    """The first answer that is done, where traffic changes and every proposal is carried out at once."""
    placement = plan(TRACE, Topology.parse("2x2"), slots_per_device=5, effort=0.1)
    decider = DecidingProcess(placement, TRACE, OPTIONS, 0, log=log)
    random, other = np.random.default_rng(0), renamed(TRACE)
    try:
        decider.take([step_of(TRACE, random) for _ in range(20)])
        while not done(answer := decider.answer()):
            assert decider.alive
            if answer.plan:
                decider.moved([0, 1])
            decider.take([step_of(other, random) for _ in range(5)])
            sleep(0.02)
    finally:
        decider.close()
    return answer


def test_decisions_and_what_they_brought_are_added_to_a_log(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"event": "of a run before"}\n')
    answer = followed_until(lambda answer: answer.effects.measured is not None, log)
    before, *lines = map(json.loads, log.read_text().splitlines())
    assert before == {"event": "of a run before"}
    decisions = [line for line in lines if line["event"] == "decision"]
    effects = [line for line in lines if line["event"] == "effect"]
    assert {effect["decided_at"] for effect in effects} <= {decision["step"] for decision in decisions if decision["moves"]}
    assert effects[0]["measured"] > 0
    assert round(answer.effects.measured, 6) in [effect["measured"] for effect in effects]
    assert 1 <= answer.decisions <= len(decisions)  # it goes on until it is ended


def test_a_log_that_can_not_be_written_is_told_and_decisions_go_on():
    answer = followed_until(lambda answer: answer.decisions >= 2, Path("/dev/full"))
    assert answer.error.startswith("/dev/full: can't be written")
