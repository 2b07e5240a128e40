"""What an operator sees: the metrics over HTTP by the client library's own parser, the log, and the dashboard."""

import json
import re
from dataclasses import replace
from importlib.resources import files
from types import SimpleNamespace
from urllib.request import urlopen

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from grace_moe.adapt import Adapter, AdaptOptions, AdaptStatus, DecisionOptions, Effects, Prices, effects_of
from grace_moe.adapt.simulate.day import renamed
from grace_moe.adapt.telemetry import Follower, MetricsServer, decision_line, status_line
from grace_moe.adapt.telemetry.traffic_view import traffic_view
from grace_moe.errors import UsageError
from grace_moe.evaluation import evaluate
from grace_moe.placement import difference
from grace_moe.planning import plan
from grace_moe.topology import Topology
from grace_moe.trace import synthetic_trace

TRACE = synthetic_trace(tokens=1600, layers=2, experts=16, top_k=2, requests=200, clusters=4, affinity=0.9, seed=1)
PLAN = plan(TRACE, Topology.parse("2x2"), slots_per_device=5, effort=0.1)
OPTIONS = AdaptOptions(decision=DecisionOptions(prices=Prices(move=1.0, local_move=0.1), budget=1.0, effort=0.2))
OTHER = plan(renamed(TRACE), Topology.parse("2x2"), slots_per_device=5, effort=0.1)
STATUS = AdaptStatus(
    state="moving",
    alive=True,
    steps=120,
    seen_steps=110,
    plan_age_steps=15,
    plan_since=1.5e9,
    decisions=3,
    skipped=1,
    migrations=1,
    rolled_back=1,
    layers_switched=7,
    copies_moved=12,
    bytes_moved=12_000,
    expected_gain=0.25,
    measured_gain=0.125,
    useless=2,
    last_reason="2 of 2 layers",
    last_error="rank 3: checksum",
)


def scraped(status, view=lambda: None):
    """Name and labels of each sample -> its value."""
    server = MetricsServer(status, view, copy_bytes=100, port=0)
    try:
        with urlopen(f"http://localhost:{server.port}/metrics") as answer:
            text = answer.read().decode()
    finally:
        server.close()
    return {
        (sample.name, *sample.labels.values()): sample.value for family in text_string_to_metric_families(text) for sample in family.samples
    }


@pytest.fixture(scope="module")
def followed():
    """An adapter that has seen traffic change and whose layers have switched at once, its follower, and the log."""
    adapter = Adapter(PLAN, TRACE, options=OPTIONS)
    lines = []
    follower = Follower(adapter, expert_bytes=1000, log=lines.append, view_every=5)
    random = np.random.default_rng(0)
    for step in range(75):
        trace = TRACE if step < 20 else renamed(TRACE)
        rows = [np.flatnonzero(trace.requests == request) for request in random.integers(200, size=32)]
        numbers = np.repeat(random.integers(1 << 30, size=32), [len(row) for row in rows])
        adapter.monitor.observe(trace.topk_ids[np.concatenate(rows)], numbers)
        decision = adapter.look()
        follower.step()
        if decision is not None and decision.placement is not None:
            assert follower.status().state == "moving"
            adapter.serving = decision.placement
    follower.step()
    return adapter, follower, lines


def test_every_field_of_a_status_is_scraped():
    found = scraped(lambda: STATUS)
    for name in ("steps", "decisions", "skipped", "migrations", "rolled_back", "layers_switched", "copies_moved"):
        assert found[(f"grace_moe_{name}_total",)] == getattr(STATUS, name)
    assert found[("grace_moe_moved_bytes_total",)] == 12_000
    assert found[("grace_moe_alive",)] == 1
    assert [found[("grace_moe_state", state)] for state in ("watching", "moving", "stopped")] == [0, 1, 0]
    assert found[("grace_moe_plan_age_steps",)] == 15
    assert found[("grace_moe_plan_since_timestamp_seconds",)] == 1.5e9
    assert found[("grace_moe_gain_copies", "expected")] == 0.25
    assert found[("grace_moe_gain_copies", "measured")] == 0.125
    assert found[("grace_moe_useless_decisions",)] == 2
    assert ("grace_moe_gain_copies", "measured") not in scraped(lambda: replace(STATUS, measured_gain=None))


def test_who_is_dead_or_can_not_answer_is_not_alive():
    def failing():
        raise RuntimeError("the mover is gone")

    assert scraped(lambda: replace(STATUS, alive=False))[("grace_moe_alive",)] == 0
    assert scraped(lambda: None) == {("grace_moe_alive",): 0}
    assert scraped(failing) == {("grace_moe_alive",): 0}


def test_what_serves_is_followed(followed):
    adapter, follower, _ = followed
    status = follower.status()
    moves = [look.decision for look in adapter.looks if look.decision.placement is not None]
    assert (status.steps, status.state, status.alive) == (75, "watching", True)
    assert status.decisions == len(adapter.looks) > 0
    assert status.skipped == len(adapter.looks) - len(moves)
    assert (status.migrations, status.rolled_back) == (len(moves), 0)
    assert status.copies_moved >= difference(adapter.serving, PLAN).moved > 0
    assert status.bytes_moved == 1000 * status.copies_moved
    assert status.last_reason == adapter.looks[-1].decision.reason
    follower.stop()
    assert (follower.status().state, follower.status().alive) == ("stopped", False)


class Moved:
    """An adapter whose decisions and moves a test writes down: both layers of `OTHER` are other than `PLAN`'s."""

    def __init__(self, look):
        self.serving, self.looks, self.monitor = PLAN, [], SimpleNamespace(step=0)
        self._look = replace(look, measured=None)
        self.follower = Follower(self, expert_bytes=1, view_every=0)

    def step(self, *, decide=None, serve=None):
        """Layers that a decision sends to, and that serve after the step: `"po"` = the first of `PLAN`, the second of `OTHER`."""
        self.monitor.step += 1
        if decide is not None:
            self.looks.append(replace(self._look, decision=replace(self._look.decision, placement=layers_of(decide))))
        if serve is not None:
            self.serving = layers_of(serve)
        self.follower.step()
        status = self.follower.status()
        return status.state, status.migrations, status.rolled_back


@pytest.fixture
def moved(followed):
    adapter, *_ = followed
    return Moved(adapter.looks[0])


def layers_of(which):
    return replace(PLAN, layers=tuple((OTHER if name == "o" else PLAN).layers[index] for index, name in enumerate(which)))


def test_a_migration_that_is_whole_in_the_step_of_its_decision_is_one(moved):
    assert moved.step(decide="oo", serve="oo") == ("watching", 1, 0)


def test_layers_that_go_on_under_a_later_decision_are_not_rolled_back(moved):
    assert moved.step(decide="op") == ("moving", 0, 0)
    assert moved.step(decide="oo") == ("moving", 0, 0)
    assert moved.step(serve="op") == ("moving", 0, 0)
    assert moved.step(serve="oo") == ("watching", 1, 0)


def test_layers_that_a_later_decision_sends_elsewhere_were_rolled_back(moved):
    moved.step(decide="op")
    assert moved.step(decide="po") == ("moving", 0, 1)
    assert moved.step(serve="po") == ("watching", 1, 1)


def test_a_decision_in_the_step_that_ends_a_migration_leaves_that_one_whole(moved):
    moved.step(decide="op")
    assert moved.step(decide="pp", serve="op") == ("moving", 1, 0)
    assert moved.step(serve="pp") == ("watching", 2, 0)


def test_traffic_is_that_of_a_replay_of_the_recent_sample(followed):
    adapter, follower, _ = followed
    view = traffic_view(adapter)
    found = evaluate(adapter.serving, adapter.monitor.sample(65))
    assert view.balance == pytest.approx(found.load_max_over_mean)
    assert np.mean(view.device_load) == pytest.approx(1.0)
    assert 1 <= view.active_experts <= 5  # slots of a device
    shown = scraped(follower.status, lambda: view)
    assert shown[("grace_moe_sent_bytes_per_token_layer", "between_nodes")] == pytest.approx(100 * found.cross_node_copies)
    assert shown[("grace_moe_balance_ratio", "actual")] == pytest.approx(view.balance)
    assert shown[("grace_moe_balance_ratio", "predicted")] == pytest.approx(view.predicted_balance)
    assert shown[("grace_moe_gain_left_copies",)] == view.gain_left >= 0
    assert shown[("grace_moe_saved_ratio",)] == view.saved_share == adapter.account.saved_share > 0


def test_a_decision_is_one_line_of_json(followed):
    adapter, _, lines = followed
    decisions = [line for line in lines if json.loads(line)["event"] == "decision"]
    assert decisions == [decision_line(look) for look in adapter.looks]
    for look, line in zip(adapter.looks, decisions, strict=True):
        told = json.loads(line)
        assert (told["step"], told["reason"], told["copies_to_load"]) == (look.step, look.decision.reason, look.decision.moved)
        assert "\n" not in line


def test_each_review_of_what_moved_is_a_line_beside_what_was_expected(followed):
    adapter, _, lines = followed
    effects = [told for told in map(json.loads, lines) if told["event"] == "effect"]
    last = {told["decided_at"]: told for told in effects}
    reviewed = [look for look in adapter.looks if look.measured is not None]
    assert reviewed
    assert list(last) == [look.step for look in reviewed]
    for look in reviewed:
        told = last[look.step]
        assert (told["expected"], told["measured"]) == (round(look.expected, 6), round(look.measured, 6))
        assert told["step"] >= look.step + adapter.options.recent_steps
    assert len({(told["decided_at"], told["measured"]) for told in effects}) == len(effects)  # none is said twice


def test_decisions_whose_moves_save_nothing_are_useless(followed):
    adapter, follower, _ = followed
    moves = [look for look in adapter.looks if look.decision.placement is not None]
    found = effects_of(adapter.looks)
    assert [look.expected for look in moves] == pytest.approx(np.cumsum([look.decision.gain.mean for look in moves]))  # of one change
    assert (found.expected, found.measured) == (moves[-1].expected, moves[-1].measured)
    assert (follower.status().measured_gain, follower.status().useless) == (found.measured, found.useless)
    for measured, useless in ((None, 0), (0.1, 0), (0.0, 1), (-0.1, 1)):
        looks = [replace(moves[0], measured=measured), *(look for look in adapter.looks if look.decision.placement is None)]
        assert effects_of(looks) == Effects(expected=moves[0].expected, measured=measured, useless=useless)
    assert effects_of([]) == Effects(expected=0.0, measured=None, useless=0)


def test_the_status_in_words():
    assert status_line(STATUS) == (
        "step 120 (110 of them seen): moving; plan of 15 steps; 3 decisions, 1 to stay; 1 migrations, 1 rolled back; 12 copies moved; "
        "moves save 0.125 copies per token, 0.250 expected; 2 useless; last: 2 of 2 layers; last error: rank 3: checksum"
    )
    assert "NOT ALIVE" in status_line(replace(STATUS, alive=False))
    assert "moves are to save 0.250 copies per token, not measured yet" in status_line(replace(STATUS, measured_gain=None))
    assert "copies per token" not in status_line(replace(STATUS, decisions=1))


def test_the_dashboard_shows_every_metric_and_no_other(followed):
    adapter, follower, _ = followed
    board = json.loads((files("grace_moe.adapt.telemetry") / "dashboard.json").read_text())
    shown = {name for panel in board["panels"] for target in panel["targets"] for name in re.findall(r"grace_moe_\w+", target["expr"])}
    view = traffic_view(adapter)
    assert shown == {name for name, *_ in scraped(follower.status, lambda: view)}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_a_port_that_is_taken_is_said():
    server = MetricsServer(lambda: STATUS, lambda: None, copy_bytes=1, port=0)
    try:
        with pytest.raises(UsageError, match="can't be had"):
            MetricsServer(lambda: STATUS, lambda: None, copy_bytes=1, port=server.port)
    finally:
        server.close()
