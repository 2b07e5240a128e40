"""The frontier: what is on it by definition, and what the command says."""

import json
import sys
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from grace_moe.cli import grace_moe
from grace_moe.errors import UsageError
from grace_moe.evaluation import pareto
from grace_moe.topology import Topology
from grace_moe.trace import synthetic_trace


@pytest.fixture(scope="module")
def trace():
    return synthetic_trace(tokens=600, experts=16, top_k=3, clusters=4, affinity=0.9, skew=0.7, requests=40, seed=3)


def test_the_frontier_is_what_nothing_beats(trace):
    points = pareto(trace, Topology.parse("2x2"), prices=(0.1, 30), redundancies=(1, 1.25))
    assert [p.costs[2] for p in points] == sorted(p.costs[2] for p in points)
    assert len(points) == 4
    for point in points:
        beaten = any(q.costs != point.costs and all(a <= b for a, b in zip(q.costs, point.costs, strict=True)) for q in points)
        assert point.best is not beaten
    cheap = {p.redundancy: p for p in points if p.price == 0.1}
    assert cheap[1.25].evaluation.cross_node_copies < cheap[1].evaluation.cross_node_copies  # memory buys traffic


def test_a_point_that_is_as_good_in_two_and_worse_in_one_is_beaten(trace, monkeypatch):
    """Prices 1 and 2 send as much with as many slots; 3 sends more and is more even. Points come by memory, then traffic."""
    balance = iter([1.2, 1.3, 1.1])
    sent = iter([1.0, 1.0, 2.0])
    module = sys.modules[pareto.__module__]
    monkeypatch.setattr(module, "plan", lambda *_, **__: None)
    monkeypatch.setattr(
        module,
        "evaluate",
        lambda *_, **__: SimpleNamespace(cross_node_copies=next(sent), load_max_over_mean=next(balance), slots_total_over_experts=1.25),
    )
    points = pareto(trace, Topology.parse("2x2"), prices=(1, 2, 3), redundancies=(1.25,))
    assert [(point.price, point.best) for point in points] == [(1, True), (2, False), (3, True)]


def test_redundancies_of_the_same_slots_are_one_point(trace):
    """16 experts on 4 devices: 1.01 and 1.25 are both five slots."""
    assert len(pareto(trace, Topology.parse("2x2"), prices=(4,), redundancies=(1.01, 1.25))) == 1


def test_the_command(trace, tmp_path):
    path = tmp_path / "t.safetensors"
    trace.save(path)
    run = CliRunner().invoke(grace_moe, ["pareto", str(path), "--topology", "2x2", "--prices", "4", "--redundancies", "1", "--json"])
    (row,) = json.loads(run.stdout)["rows"]
    assert (row["price"], row["redundancy"], row["best"]) == (4, 1, True)
    table = CliRunner().invoke(grace_moe, ["pareto", str(path), "--topology", "2x2", "--prices", "4", "--redundancies", "1"]).stdout
    assert f"{row['cross_node_copies']:.3f}" in table
    with pytest.raises(UsageError, match="--prices: 'a' is not a number from 0 to 1e6"):
        CliRunner().invoke(grace_moe, ["pareto", str(path), "--topology", "2x2", "--prices", "a,b"], catch_exceptions=False)
    with pytest.raises(UsageError, match="no prices"):
        pareto(trace, Topology.parse("2x2"), prices=())
