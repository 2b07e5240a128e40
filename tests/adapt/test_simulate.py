import html
import json
import shlex

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.adapt.simulate import METRICS, SCENARIOS, DayOptions, StreamOptions, run_day
from grace_moe.adapt.simulate.day import renamed
from grace_moe.adapt.simulate.scenarios import scenario_weights
from grace_moe.adapt.simulate.stream import Pool, stream
from grace_moe.cli import grace_moe
from grace_moe.errors import MismatchError, UsageError
from grace_moe.topology import Topology
from grace_moe.trace import synthetic_trace

TRACE = synthetic_trace(tokens=6000, layers=2, experts=16, top_k=2, requests=400, clusters=4, affinity=0.9, seed=1)
TOPOLOGY = Topology.parse("2x2")
DAY = DayOptions(stream=StreamOptions(steps=120, requests=32, tokens_per_request=8), expert_bytes=8192 * 16, effort=0.2)


@pytest.mark.parametrize("name", SCENARIOS)
@given(steps=st.integers(1, 200), domains=st.integers(1, 4), seed=st.integers(0, 9))
def test_shares_of_a_step_sum_to_one(name, steps, domains, seed):
    weights = scenario_weights(name, steps=steps, domains=domains, seed=seed)
    assert weights.shape == (steps, domains)
    assert weights.min() >= 0
    assert weights.sum(axis=1) == pytest.approx(np.ones(steps))


def test_requests_run_token_by_token_and_come_by_their_shares():
    domains = [TRACE, renamed(TRACE)]
    pool = Pool(domains)
    options = StreamOptions(steps=200, requests=10, tokens_per_request=4)
    weights = np.tile([0.8, 0.2], (200, 1))
    tokens = list(stream(pool, weights, options, 0))
    of_request = {}
    for step in tokens:
        assert len(step.token) <= options.tokens
        for token, request in zip(step.token, step.request, strict=True):
            of_request.setdefault(int(request), []).append(int(token))
    for run in of_request.values():
        assert run == list(range(run[0], run[0] + len(run)))
    second = np.mean([run[0] >= TRACE.num_tokens for run in of_request.values()])
    assert 0.1 < second < 0.3
    again = list(stream(pool, weights, options, 0))
    assert all((a.token == b.token).all() and (a.request == b.request).all() for a, b in zip(tokens, again, strict=True))


def test_steady_traffic_moves_nothing_and_costs_what_static_costs():
    day = run_day([TRACE], TOPOLOGY, "steady", ["static", "grace"], DAY)
    static, ours = day.rows()
    assert ours["moved_copies"] == 0
    assert ours["total_cost"] == static["total_cost"]


def test_after_a_shift_ours_costs_less_than_static_and_the_oracle_least():
    day = run_day([TRACE], TOPOLOGY, "shift", ["static", "grace", "oracle"], DAY)
    rows = {row["policy"]: row for row in day.rows()}
    assert rows["oracle"]["total_cost"] < rows["grace"]["total_cost"] < 0.97 * rows["static"]["total_cost"]
    assert rows["grace"]["moved_copies"] > 0
    assert rows["grace"]["stall_seconds"] == rows["oracle"]["moved_copies"] == 0


def test_a_timer_moves_whatever_it_costs_and_stops_serving():
    options = DayOptions(stream=DAY.stream, expert_bytes=DAY.expert_bytes, effort=0.2, interval=30, window=20)
    day = run_day([TRACE], TOPOLOGY, "steady", ["eplb", "loads"], options)
    timer, loads = day.rows()
    assert timer["moved_copies"] > 0 < timer["stall_seconds"]
    assert loads["stall_seconds"] == 0
    assert loads["moved_copies"] <= timer["moved_copies"]


def test_the_command(tmp_path):
    path = tmp_path / "trace.safetensors"
    TRACE.save(path)
    base = [
        "simulate",
        str(path),
        "--topology",
        "2x2",
        "--steps",
        "20",
        "--effort",
        "0.1",
        "--policies",
        "static,grace",
        "--scenario",
        "drift",
    ]
    found = json.loads(CliRunner().invoke(grace_moe, [*base, "--json", "--seeds", "2"], catch_exceptions=False).stdout)
    assert found["scenario"] == "drift"
    assert [row["policy"] for row in found["rows"]] == ["static", "grace"]
    assert all(set(METRICS) <= set(row) and row["total_cost_range"][0] <= row["total_cost"] for row in found["rows"])
    table = CliRunner().invoke(grace_moe, base, catch_exceptions=False).stdout
    assert "drift" in table
    assert "static" in table


def test_the_oracle_plans_where_every_request_is_longer_than_its_domains_share():
    few = [synthetic_trace(tokens=60, layers=2, experts=16, top_k=2, requests=2, seed=seed) for seed in range(3)]
    day = run_day(few, TOPOLOGY, "steady-mix", ["oracle"], DayOptions(stream=StreamOptions(steps=3), effort=0.1))
    assert day.rows()[0]["total_cost"] > 0


def test_an_unknown_scenario_is_refused_before_anything_is_planned(monkeypatch):
    def begin(*_):
        raise AssertionError("planned")

    monkeypatch.setattr("grace_moe.adapt.simulate.day._begin", begin)
    with pytest.raises(UsageError, match="scenario 'storm'"):
        run_day([TRACE], TOPOLOGY, "storm", ["static"], DAY)


def test_what_can_not_be_simulated_is_refused(tmp_path):
    with pytest.raises(UsageError, match="policy 'magic'"):
        run_day([TRACE], TOPOLOGY, "shift", ["magic"], DAY)
    with pytest.raises(MismatchError, match="another model"):
        run_day([TRACE, synthetic_trace(tokens=50, experts=8)], TOPOLOGY, "shift", ["static"], DAY)
    with pytest.raises(UsageError, match="named twice"):
        CliRunner().invoke(grace_moe, ["simulate", "a", "a", "--topology", "2x2"], catch_exceptions=False)


def test_the_command_writes_a_page_and_a_log(tmp_path):
    traces = [str(tmp_path / name) for name in ("trace.safetensors", "other trace.safetensors")]
    TRACE.save(traces[0])
    renamed(TRACE).save(traces[1])
    page, log = tmp_path / "day.html", tmp_path / "decisions.jsonl"
    command = ["simulate", *traces, "--topology", "2x2", "--steps", "50", "--requests", "32"]
    command += ["--policies", "static,grace", "--effort", "0.1", "--seeds", "2", "--expert-bytes", "8192"]
    found = CliRunner().invoke(grace_moe, [*command, "--report", str(page), "--log", str(log), "--metrics-port", "0"])
    assert found.exit_code == 0, found.output
    assert "metrics: http://localhost:" in found.stderr
    assert "grace, last day: step 50: " in found.stderr
    text = page.read_text()
    assert "following traffic cost" in text
    assert all(f'id="{name}"' in text for name in ("spread", "steps", "moves"))
    again = shlex.split(html.unescape(text.partition("<dt>to make it again</dt><dd><code>")[2].partition("</code>")[0]))
    assert again[:4] == ["grace-moe", "simulate", *traces]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) >= 2
    assert {line["event"] for line in lines} == {"decision", "effect"}


def test_what_shows_nothing_is_refused(tmp_path):
    TRACE.save(tmp_path / "trace.safetensors")
    command = ["simulate", str(tmp_path / "trace.safetensors"), "--topology", "2x2", "--policies", "static"]
    found = CliRunner().invoke(grace_moe, [*command, "--log", str(tmp_path / "log.jsonl")])
    assert isinstance(found.exception, UsageError)
    assert "it is not among the policies" in str(found.exception)
    assert not (tmp_path / "log.jsonl").exists()
