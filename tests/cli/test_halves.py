"""Commands that plan on one half of a trace and measure on the other: they say where the halves are of unlike traffic."""

import json

import numpy as np
import pytest

from grace_moe import RoutingTrace
from grace_moe.trace import LoadProfile
from tests.cli.failing import fails

COMMANDS = {
    "compare": ("--methods", "linear"),
    "report": ("--methods", "linear", "--memory", "1", "--redundancy", "1", "-o", "page.html"),
    "pareto": ("--prices", "2", "--redundancies", "1"),
    "diagnose": ("--redundancy", "1"),
    "size": ("--nodes", "1", "--redundancies", "1", "--batches", "64"),
}


@pytest.fixture
def turns(folder):
    """Long and short requests take turns."""
    requests = np.repeat(np.arange(40, dtype=np.int32), [3, 7] * 20)
    ids = np.random.default_rng(0).random((len(requests), 2, 8)).argsort(axis=2)[:, :, :2].astype(np.int16)
    RoutingTrace(topk_ids=ids, num_experts=8, layer_ids=(0, 1), request_ids=requests, model="m").save("turns.safetensors")
    return "turns.safetensors"


@pytest.mark.parametrize("command", COMMANDS)
def test_unlike_halves_are_told_in_text_and_json(command, turns, call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    arguments = (command, turns, "--topology", "1x2", *COMMANDS[command])
    code, out, err = call(*arguments)
    assert code == 0, err
    assert "every second request is other traffic: requests planned on have 3 tokens on average" in " ".join(out.split())
    (note,) = [note for note in json.loads(call(*arguments, "--json")[1])["notes"] if "other traffic" in note]
    assert note.startswith("turns.safetensors: ")


@pytest.mark.parametrize("command", COMMANDS)
def test_halves_by_a_seed_are_drawn_at_random(command, turns, call):
    arguments = (command, turns, "--topology", "1x2", *COMMANDS[command], "--json")
    code, out, err = call(*arguments, "--split-seed", "1")
    assert code == 0, err
    assert "other traffic" not in out
    assert "--split-seed: of TRACE's halves, and --eval" in fails(call, 2, *arguments, "--split-seed", "1", "--eval", turns)


def test_halves_by_a_seed_are_those_of_python(turns, call):
    planned_on, measured_on = RoutingTrace.load(turns).split_requests(3)
    value = json.loads(call("compare", turns, "--topology", "1x2", "--methods", "linear", "--split-seed", "3", "--json")[1])
    assert (value["trace"]["digest"], value["eval"]["digest"]) == (planned_on.digest, measured_on.digest)


def test_the_page_of_a_report_says_it(turns, call):
    assert call("report", turns, "--topology", "1x2", *COMMANDS["report"])[0] == 0
    with open("page.html", encoding="utf-8") as page:
        assert "every second request is other traffic" in page.read()


@pytest.mark.parametrize("command", ["diagnose", "size"])
def test_a_trace_of_another_model_is_named(command, turns, call):
    ids = np.zeros((20, 2, 1), dtype=np.int16)
    RoutingTrace(topk_ids=ids, num_experts=4, layer_ids=(0, 1), request_ids=np.arange(20, dtype=np.int32)).save("other.safetensors")
    error = fails(call, 4, command, turns, "--topology", "1x2", *COMMANDS[command], "--eval", "other.safetensors")
    assert error.startswith("turns.safetensors: num_experts: 8, but other.safetensors has 4")


def test_counts_have_no_halves(folder, call):
    LoadProfile(loads=np.ones((1, 8), np.int64), layer_ids=(0,)).save("counts.safetensors")
    error = fails(call, 2, "diagnose", "counts.safetensors", "--topology", "1x2", "--split-seed", "1")
    assert error.startswith("--eval, --split-seed: TRACE holds counts")
