"""`grace-moe report`."""

import json
import re

import pytest

from grace_moe.cli import main
from grace_moe.evaluation import compare
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace, synthetic_trace


@pytest.fixture
def call(capfd, tmp_path, monkeypatch):
    """Calls the entry point in a folder with a trace: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    synthetic_trace(tokens=160, layers=2, experts=16, top_k=4).save("t.safetensors")

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(["report", "t.safetensors", "--topology", "2x2", *arguments])
        return stop.value.code, *capfd.readouterr()

    return run


def test_the_command_writes_the_page_and_says_the_gain(call, tmp_path):
    code, out, err = call("-o", "r.html", "--methods", "eplb", "--memory", "1", "--seed", "3")
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert first.startswith("On 2 nodes x 2 devices, GRACE sends ")
    assert second == "r.html: open it in a browser"
    page = (tmp_path / "r.html").read_text()
    assert "grace-moe report t.safetensors --topology 2x2 --methods eplb --seed 3 --memory 1 -o r.html" in page
    assert first in re.sub(r"</?b>", "", page)


def test_its_json_is_the_comparisons_numbers(call):
    code, out, _ = call("-o", "r.html", "--methods", "eplb,linear", "--json")
    value = json.loads(out)
    assert code == 0
    assert value["report"] == "r.html"
    assert [row["method"] for row in value["rows"]] == ["grace", "eplb", "linear"]
    expected = compare(RoutingTrace.load("t.safetensors"), Topology.parse("2x2"), methods=("grace", "eplb", "linear")).to_dict()
    assert value["rows"] == [{k: v for k, v in row.items() if k != "plan_seconds"} for row in expected["rows"]]
    assert [row["slots_total_over_experts"] for row in value["memory"]] == [1.0, 1.25, 1.5]


def test_the_command_measures_on_another_trace(call):
    synthetic_trace(tokens=80, layers=2, experts=16, top_k=4, seed=1).save("e.safetensors")
    _, out, _ = call("-o", "r.html", "--methods", "linear", "--eval", "e.safetensors", "--memory", "1", "--json")
    assert json.loads(out)["eval"] == {"source": "e.safetensors", "digest": RoutingTrace.load("e.safetensors").digest, "tokens": 80}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--memory", "0.5"), 2, "--memory: '0.5' is not a number from 1 (no replicas) to 4 (every expert on all devices)"),
        (("--memory", "1,x"), 2, "--memory: 'x' is not a number from 1"),
        (("--memory", "nan"), 2, "--memory: 'nan' is not a number from 1"),
        (("--methods", "best"), 2, "--methods: method 'best' is unknown; use one of grace, "),
        (("--redundancy", "9"), 2, "redundancy 9.0 is out of range"),
        (("--phase", "decode"), 2, "--phase: of the verdict, which needs --model; name the model's folder or config.json"),
        (("--eval", "absent.safetensors"), 3, "absent.safetensors"),
        (("--memory", "1", "-o", "absent/r.html"), 1, "absent/r.html: can't be written: No such file or directory"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(call, tmp_path, arguments, code, message):
    found, out, err = call("-o", "r.html", "--methods", "linear", *arguments)
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "r.html").exists()
