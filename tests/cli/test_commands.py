"""The command line in this process: what it prints and what it writes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from grace_moe.cli import COMMANDS, SUMMARIES, grace_moe
from grace_moe.evaluation import METRICS
from grace_moe.placement import Placement
from grace_moe.planning import METHODS
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace, mixed, synthetic_trace
from tests.cli.failing import fails


def test_help_lists_every_command_in_order():
    text = CliRunner().invoke(grace_moe, ["--help"]).output
    places = [text.index(f"\n  {name} ") for name in COMMANDS]
    assert places == sorted(places)
    assert list(SUMMARIES) == list(COMMANDS)
    for summary in SUMMARIES.values():
        assert " ".join(summary.split()) in " ".join(text.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_json_examples_and_words(name):
    command = grace_moe.get_command(click.Context(grace_moe), name)
    assert command.name == name
    assert command.help
    assert any("--json" in parameter.opts for parameter in command.params)
    for flag in ("--help", "-h"):
        result = CliRunner().invoke(grace_moe, [name, flag])
        assert result.exit_code == 0
        assert "Examples:" in result.output
        assert f"grace-moe {name}" in result.output
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name != "seed":
            assert parameter.help or isinstance(parameter.type, click.Choice), parameter.name


def test_compare_shows_a_method_that_cannot_plan_as_a_row(call, trace):
    code, out, _ = call("compare", trace, "--topology", "4x5", "--methods", "linear,grace_paper")
    assert code == 0
    assert re.search(r"^ *grace_paper( +-)+ *$", out, re.MULTILINE)
    assert "grace_paper: 16 experts on 20 devices" in " ".join(out.split())


def test_compare_help_names_every_method():
    text = CliRunner().invoke(grace_moe, ["compare", "--help"]).output
    listed = re.search(r"Methods: (.*?)\.\n", text)[1]
    assert tuple(listed.split(", ")) == METHODS


def test_help_is_light():
    """Of the whole program it needs not even NumPy; of a command it compiles nothing and starts no torch."""
    code = """
import sys
from click.testing import CliRunner
from grace_moe.cli import COMMANDS, grace_moe
assert CliRunner().invoke(grace_moe, ["--help"]).exit_code == 0
print("numpy" in sys.modules, end=" ")
for name in COMMANDS:
    assert CliRunner().invoke(grace_moe, [name, "--help"]).exit_code == 0
print([name for name in ("torch", "transformers", "plotly", "numba", "sklearn") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.stdout.split("\n")[0] == "False []", result.stderr


def test_version():
    assert CliRunner().invoke(grace_moe, ["--version"]).output.startswith("grace-moe, version ")


# --- plan, compare, inspect --------------------------------------------------------------------------------------------------------------


def test_plan_writes_a_placement_and_says_what_it_is(call, trace, folder):
    code, out, err = call("plan", trace, "--topology", "2x2", "--method", "linear", "-o", "plan.json")
    assert (code, err) == (0, "")
    words = r"plan\.json: linear for 2x2, 2 layers in \d+\.\d s, 1\.00x expert memory, 4 to 4 experts a device\n"
    assert re.fullmatch(words, out)
    placement = Placement.load("plan.json")
    assert placement.topology == Topology.parse("2x2")
    assert placement.provenance["trace_digest"] == RoutingTrace.load(trace).digest
    assert [p.name for p in folder.iterdir()] == ["plan.json"]


def test_plan_json(call, trace, folder):
    code, out, err = call("plan", trace, "--topology", "2x2", "--method", "eplb", "--redundancy", "1.5", "-o", "plan.json", "--json")
    value = json.loads(out)
    assert (code, err) == (0, "")
    assert list(value) == ["placement", "method", "topology", "plan_seconds", "slots_total_over_experts", "slots_max_per_device", "notes"]
    assert (value["method"], value["slots_total_over_experts"], value["slots_max_per_device"]) == ("eplb", 1.5, 6)


def test_plan_plans_by_default_as_the_library_does(call, trace, folder):
    assert call("plan", trace, "--topology", "2x2", "-o", "a.json")[0] == 0
    from grace_moe import plan

    plan(RoutingTrace.load(trace), Topology.parse("2x2")).save("b.json")
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes()


def test_plan_takes_options_of_the_method_and_notes_what_has_no_effect(call, trace, folder):
    code, _, _ = call("plan", trace, "--topology", "2x2", "--method", "grace_paper", "--option", "r=0.15", "-o", "plan.json")
    assert code == 0
    assert Placement.load("plan.json").provenance["options"]["r"] == 0.15
    _, out, _ = call("plan", trace, "--topology", "2x2", "--method", "linear", "--redundancy", "2", "-o", "plan.json")
    assert "note: redundancy 2.0 has no effect" in out
    _, out, _ = call("plan", trace, "--topology", "2x2", "--method", "eplb", "--redundancy", "auto", "-o", "plan.json")
    assert "note: redundancy auto became 1.00: 4 slots on each of 4 devices" in out


def test_several_traces_weigh_the_same(call, trace, folder):
    other = synthetic_trace(tokens=90, layers=2, experts=16, top_k=4, seed=9)
    other.save("other.safetensors")
    for command in (["plan", "-o", "plan.json"], ["compare"]):
        code, out, err = call(
            *command, trace, "other.safetensors", "--topology", "2x2", "--json", *(["--methods", "eplb"] * (len(command) == 1))
        )
        assert (code, err) == (0, "")
    assert Placement.load("plan.json").provenance["trace_digest"] == mixed([RoutingTrace.load(trace), other]).digest
    assert json.loads(out)["trace"]["source"] == f"{trace} + other.safetensors"
    assert "is named twice" in fails(call, 2, "plan", trace, trace, "--topology", "2x2", "-o", "plan.json")
    synthetic_trace(tokens=90, layers=1, experts=16, top_k=4).save("other.safetensors")
    assert "other.safetensors: layer_ids: (0,), but" in fails(
        call, 3, "plan", trace, "other.safetensors", "--topology", "2x2", "-o", "p.json"
    )


def test_inspect_says_what_must_move(call, trace, folder):
    for method in ("linear", "round_robin"):
        assert call("plan", trace, "--topology", "2x2", "--method", method, "-o", f"{method}.json")[0] == 0
    code, out, err = call("inspect", "round_robin.json", "--against", "linear.json", "--expert-bytes", "10", "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    # Devices hold 0-3, 4-7, 8-11, 12-15; then each fourth: one of its four each device has, in both of the layers.
    assert (facts["copies"], facts["copies_to_load"], facts["bytes_to_load"]) == (32, 24, 240)
    assert facts["by_device"] == [6, 6, 6, 6]
    assert "copies to load" in call("inspect", "round_robin.json", "--against", "linear.json")[1]
    assert "give --against too" in fails(call, 2, "inspect", "linear.json", "--expert-bytes", "10")


def test_plan_follows_the_seed(call, trace, folder):
    for seed, name in ((1, "a"), (1, "b"), (2, "c")):
        assert call("plan", trace, "--topology", "2x2", "--method", "grace_paper", "--seed", seed, "-o", name)[0] == 0
    assert Path("a").read_bytes() == Path("b").read_bytes()
    assert Placement.load("c").provenance["seed"] == 2


def test_compare_json(call, trace):
    code, out, err = call("compare", trace, "--topology", "2x2", "--methods", "linear, eplb", "--json")
    value = json.loads(out)
    assert (code, err) == (0, "")
    assert [row["method"] for row in value["rows"]] == ["linear", "eplb"]
    assert set(METRICS) <= set(value["rows"][0])
    assert value["trace"]["source"] == str(trace)
    assert value["trace"]["tokens"] + value["eval"]["tokens"] == 200


def test_compare_measures_the_trace_it_is_told_to(call, trace, folder):
    synthetic_trace(tokens=70, layers=2, experts=16, top_k=4, seed=5).save("eval.safetensors")
    code, out, _ = call("compare", trace, "--eval", "eval.safetensors", "--topology", "2x2", "--methods", "linear", "--json")
    value = json.loads(out)
    assert code == 0
    assert (value["trace"]["tokens"], value["eval"]["tokens"], value["eval"]["source"]) == (200, 70, "eval.safetensors")


def test_compare_keeps_to_the_memory_of_the_topology(call, trace, folder):
    devices = [{"memory_bytes": 1000}] * 2
    Path("small.json").write_text(json.dumps({"nodes": [{"devices": devices}] * 2}))
    arguments = ("compare", trace, "--topology", "small.json", "--methods", "eplb", "--redundancy", 2, "--json", "--expert-bytes")
    assert json.loads(call(*arguments, 100)[1])["rows"][0]["slots_max_per_device"] == 5
    assert "memory_bytes: room for 12 experts a layer" in fails(call, 2, *arguments, 150)


def test_compare_prints_a_table_that_fits(call, trace, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = call("compare", trace, "--topology", "2x2", "--methods", "linear,round_robin")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 100
    assert [line.split()[0] for line in lines if "1.00x" in line] == ["linear", "round_robin"]
    assert "* = best. Measured on 100 tokens; planned on 100 of other requests." in out


def test_compare_fits_eighty_columns_of_ascii_and_stars_the_best(call, trace, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    methods = "linear,round_robin,eplb,cooccurrence"
    code, out, err = call("compare", trace, "--topology", "2x2", "--methods", methods)
    assert (code, err) == (0, "")
    assert out.isascii()
    assert max(map(len, out.splitlines())) <= 80
    rows = json.loads(call("compare", trace, "--topology", "2x2", "--methods", methods, "--json")[1])["rows"]
    cells = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line[2:3].isalpha() and ("x " in line or "x*" in line)}
    assert list(cells) == methods.split(",")
    for column, name in enumerate(("cross_node_copies", "intra_node_copies", "load_max_over_mean")):
        best = min(rows, key=lambda row: row[name])
        assert cells[best["method"]][column].endswith("*")
        worst = max(rows, key=lambda row: row[name])
        assert not cells[worst["method"]][column].endswith("*")


def test_compare_says_when_it_measures_what_it_planned_on(call, trace):
    assert "planned on 200 of the same requests" in call("compare", trace, "--eval", trace, "--topology", "2x2", "--methods", "linear")[1]


@pytest.fixture
def things(trace, folder, call):
    """One of each file: its argument -> its kind."""
    assert call("plan", trace, "--topology", "2x2", "--method", "linear", "-o", "plan.json")[0] == 0
    Topology.parse("2x3").save("cluster.json")
    return {str(trace): "trace", "plan.json": "placement", "cluster.json": "topology", "2x4": "topology"}


def test_inspect_shows_any_of_them(call, things):
    for argument, kind in things.items():
        code, out, err = call("inspect", argument, "--json")
        assert (code, err, json.loads(out)["kind"]) == (0, "", kind)
        code, out, err = call("inspect", argument)
        assert (code, err) == (0, "")
        assert kind in out.split()


def test_inspect_knows_a_file_by_its_content_too(call, things):
    for argument, kind in things.items():
        if Path(argument).is_file():
            Path("file").write_bytes(Path(argument).read_bytes())
            assert json.loads(call("inspect", "file", "--json")[1])["kind"] == kind


def test_inspect_says_what_is_in_a_topology(call, folder):
    devices = [{"memory_bytes": 1000, "relative_speed": 2}, {}]
    Path("t.json").write_text(json.dumps({"nodes": [{"devices": devices}], "bandwidth": [[1, 2], [3, 4]]}))
    value = json.loads(call("inspect", "t.json", "--json")[1])
    assert (value["memory_bytes"], value["relative_speeds"], value["bandwidth_matrix"]) == ([1000], [1.0, 2.0], "given")
    value = json.loads(call("inspect", "2x2", "--json")[1])
    assert (value["memory_bytes"], value["bandwidth_matrix"]) == ("not limited", "not given")


def test_inspect_says_what_is_in_a_trace(call, trace):
    value = json.loads(call("inspect", trace, "--json")[1])
    assert (value["tokens"], value["layers"], value["num_experts"], value["top_k"], value["requests"]) == (200, 2, 16, 4, 16)
    assert value["digest"] == RoutingTrace.load(trace).digest


@pytest.mark.parametrize("name", ["[/nothing]", "[bold red]x", "[link=x", "\\[", "a\nb"])
def test_a_name_in_a_file_is_text_and_never_markup(call, folder, name):
    """Rich raises on a closing tag without its opening."""
    ids = np.zeros((1, 1, 1), np.int16)
    RoutingTrace(topk_ids=ids, num_experts=1, layer_ids=(0,), model=name).save("t.safetensors")
    code, out, err = call("inspect", "t.safetensors")
    assert (code, err) == (0, "")
    assert name.splitlines()[0] in out


# --- failures ----------------------------------------------------------------------------------------------------------------------------
