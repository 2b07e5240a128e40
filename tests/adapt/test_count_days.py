"""Days of recordings of counts: what is drawn, what is counted, what the command says."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from grace_moe.adapt.simulate import DayOptions, StreamOptions, run_load_day
from grace_moe.adapt.simulate.load_stream import LoadPool, ServedLoads, load_stream
from grace_moe.cli import grace_moe
from grace_moe.errors import GraceError, TraceError, UsageError
from grace_moe.placement import LayerPlacement, Placement
from grace_moe.topology import Topology
from grace_moe.trace import LoadProfile, synthetic_trace

TOPOLOGY = Topology.parse("2x2")
OPTIONS = DayOptions(stream=StreamOptions(steps=440, requests=32, tokens_per_request=32), expert_bytes=8192 * 16)


def shard(dataset, seed):
    """Of a domain that its name tells; shards of one differ a little."""
    shares = np.random.default_rng(len(dataset)).dirichlet(np.full(16, 0.7), size=2)
    own = np.random.default_rng(seed).dirichlet(np.full(16, 0.7), size=2)
    loads = np.random.default_rng(seed).multinomial(30_000, 0.95 * shares + 0.05 * own)
    return LoadProfile(loads=loads, layer_ids=(0, 1), dataset=dataset, source=f"{dataset}{seed}")


SHARDS = [shard(dataset, seed) for dataset in ("books", "mathematics") for seed in range(4)]


def test_steps_are_drawn_from_the_shards_by_the_shares_of_their_domains():
    pool = LoadPool([SHARDS[:4], SHARDS[4:]])
    options = StreamOptions(steps=60, requests=400, tokens_per_request=4)
    weights = np.repeat([[1.0, 0.0], [0.0, 1.0]], 30, axis=0)
    steps = list(load_stream(pool, weights, options, 2, 0))
    assert all((step.sum(axis=1) == 400 * 4 * 2).all() for step in steps)
    for part, shards in ((steps[:30], SHARDS[:4]), (steps[-10:], SHARDS[4:])):
        mean = np.mean([one.loads / 30_000 for one in shards], axis=0)
        assert np.sum(part, axis=0) / np.sum(part, axis=0).sum(axis=1, keepdims=True) == pytest.approx(mean, abs=0.01)
    again = list(load_stream(pool, weights, options, 2, 0))
    assert all((one == other).all() for one, other in zip(steps, again, strict=True))


def test_the_busiest_device_by_hand():
    """Expert 0 has 6 pairs, shared 2 to 1 by devices 0 and 1; expert 1 has 2, on device 1."""
    layer = LayerPlacement(layer_id=0, devices_of_expert=((0, 1), (1,)), replica_weights=((2 / 3, 1 / 3), (1.0,)))
    placement = Placement(topology=Topology.parse("1x2"), num_experts=2, layers=(layer,), replica_choice="wrr")
    assert ServedLoads(placement).busiest(np.array([[6, 2]])) == 1.0
    assert ServedLoads(placement).busiest(np.array([[6, 6]])) == pytest.approx(8 / 6)


def test_after_a_shift_ours_is_nearly_as_even_as_a_fresh_plan_and_moves_less_than_eplb():
    options = DayOptions(stream=OPTIONS.stream, expert_bytes=OPTIONS.expert_bytes, interval=220, window=100)
    day = run_load_day(SHARDS, TOPOLOGY, "shift", ["static", "eplb", "grace", "oracle"], options, top_k=2)
    rows = {row["policy"]: row for row in day.rows()}
    assert all(row["cross_node_copies"] is None for row in rows.values())
    last = {name: np.mean(days[0].cost_of_steps[-50:]) for name, days in day.outcomes.items()}
    assert last["grace"] < last["oracle"] + 0.1 * (last["static"] - last["oracle"])
    assert 0 < rows["grace"]["moved_copies"] < rows["eplb"]["moved_copies"]
    assert rows["grace"]["load_max_over_mean"] < rows["eplb"]["load_max_over_mean"]
    assert day.by_counts
    assert day.note == ""


def test_steady_traffic_moves_nothing():
    day = run_load_day(SHARDS, TOPOLOGY, "steady", ["static", "grace"], OPTIONS, top_k=2)
    static, ours = day.rows()
    assert ours["moved_copies"] == 0
    assert ours["total_cost"] <= 1.005 * static["total_cost"]


def saved(tmp_path, shards):
    paths = []
    for index, one in enumerate(shards):
        paths.append(str(tmp_path / f"{index}.safetensors"))
        one.save(paths[-1])
    return paths


def test_the_command_says_that_balance_alone_is_counted(tmp_path):
    command = ["simulate", *saved(tmp_path, SHARDS[::2]), "--topology", "2x2", "--top-k", "2", "--steps", "120", "--scenario", "turns"]
    page, log = tmp_path / "day.html", tmp_path / "log.jsonl"
    found = CliRunner().invoke(grace_moe, [*command, "--json", "--report", str(page), "--log", str(log)], catch_exceptions=False)
    told = json.loads(found.stdout)
    assert told["by_counts"] is True
    assert [row["policy"] for row in told["rows"]] == ["static", "eplb", "loads", "grace", "oracle"]
    assert {row["cross_node_copies"] for row in told["rows"]} == {None}
    assert "counts alone" in page.read_text().lower()
    assert all("by counts alone" in json.loads(line)["reason"] for line in log.read_text().splitlines())
    table = CliRunner().invoke(grace_moe, command, catch_exceptions=False).stdout
    assert "counts alone" in table
    assert "between \n" not in table


def test_what_was_seen_and_measured_alike_is_said(tmp_path):
    command = ["simulate", *saved(tmp_path, SHARDS[::4]), "--topology", "2x2", "--top-k", "2", "--steps", "5", "--policies", "static"]
    found = CliRunner().invoke(grace_moe, [*command, "--json"], catch_exceptions=False)
    note = json.loads(found.stdout)["note"]
    assert "2 of 2 domains have one recording" in note
    assert note.split(":")[0] in CliRunner().invoke(grace_moe, command, catch_exceptions=False).stdout.replace("\n", " ")


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ([], "give --top-k"),
        (["--top-k", "2", "--effort", "0.5"], "--effort: of searches"),
        (["--top-k", "2", "--policies", "magic"], "policy 'magic' is unknown"),
    ],
)
def test_what_has_no_use_or_is_lacking_is_refused(tmp_path, more, problem):
    found = CliRunner().invoke(grace_moe, ["simulate", *saved(tmp_path, SHARDS[::4]), "--topology", "2x2", *more])
    assert isinstance(found.exception, GraceError)
    assert problem in str(found.exception)


def test_tokens_and_counts_do_not_mix_and_top_k_is_of_counts_alone(tmp_path):
    trace, counts = tmp_path / "trace.safetensors", saved(tmp_path, SHARDS[:1])
    synthetic_trace(tokens=100, layers=2, experts=16, top_k=2, requests=10).save(trace)
    found = CliRunner().invoke(grace_moe, ["simulate", str(trace), *counts, "--topology", "2x2", "--top-k", "2"])
    assert isinstance(found.exception, TraceError)
    assert "give recordings of tokens alone" in str(found.exception)
    found = CliRunner().invoke(grace_moe, ["simulate", str(trace), "--topology", "2x2", "--top-k", "2"])
    assert isinstance(found.exception, UsageError)
    assert "leave it out" in str(found.exception)


def test_one_domain_and_two_models_are_refused():
    with pytest.raises(UsageError, match="counts of a second"):
        run_load_day(SHARDS[:4], TOPOLOGY, "shift", ["static"], OPTIONS, top_k=2)
    other = LoadProfile(loads=np.ones((2, 8), np.int64), layer_ids=(0, 1), dataset="other")
    with pytest.raises(TraceError, match="of other experts"):
        run_load_day([SHARDS[0], other], TOPOLOGY, "shift", ["static"], OPTIONS, top_k=2)


def test_an_unknown_scenario_is_refused_by_counts_too():
    with pytest.raises(UsageError, match="scenario 'storm' is unknown"):
        run_load_day(SHARDS, TOPOLOGY, "storm", ["static"], OPTIONS, top_k=2)
