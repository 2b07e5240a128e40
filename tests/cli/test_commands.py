"""The command line through its front door: text, JSON, exit codes, and errors of one line."""

import json
import os
import subprocess
import sys

import pytest

from grace_moe.cli import COMMANDS, grace_moe, main
from grace_moe.trace import synthetic_trace


@pytest.fixture
def trace(tmp_path):
    synthetic_trace(tokens=300, layers=2, experts=16, top_k=4).save(tmp_path / "t.safetensors")
    return tmp_path / "t.safetensors"


def call(capsys, *arguments):
    """Exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as exit_:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return exit_.value.code or 0, out, err


def test_help_lists_every_command_and_each_has_json_and_examples(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0
    for name in COMMANDS:
        assert f"  {name} " in out
        command = grace_moe.get_command(None, name)
        assert any("--json" in o.opts for o in command.params)
        assert "Examples:" in command.epilog


def test_plan_writes_a_placement_and_says_so(capsys, trace, tmp_path):
    code, out, _ = call(capsys, "plan", trace, "--topology", "2x2", "--method", "eplb", "-o", tmp_path / "p.json", "--json")
    summary = json.loads(out)
    assert code == 0
    assert (summary["method"], summary["topology"], summary["slots_total_over_experts"]) == ("eplb", "2x2", 1.25)
    code, out, _ = call(
        capsys, "plan", trace, "--topology", "2x2", "--method", "grace_paper", "--option", "r=0.15", "-o", tmp_path / "q.json"
    )
    assert code == 0
    assert "grace_paper for 2x2, 2 layers in" in out


def test_inspect_shows_each_kind(capsys, trace, tmp_path):
    call(capsys, "plan", trace, "--topology", "2x2", "--method", "linear", "-o", tmp_path / "p.json")
    for file, kind in ((trace, "trace"), (tmp_path / "p.json", "placement"), ("2x4", "topology")):
        code, out, _ = call(capsys, "inspect", file, "--json")
        assert (code, json.loads(out)["kind"]) == (0, kind)
        assert kind in call(capsys, "inspect", file)[1]


def test_compare_prints_a_row_a_method(capsys, trace):
    code, out, _ = call(capsys, "compare", trace, "--topology", "2x2", "--methods", "linear,eplb")
    assert code == 0
    assert "linear" in out
    assert "busiest" in out
    code, out, _ = call(capsys, "compare", trace, "--topology", "2x2", "--methods", "linear,eplb", "--json")
    assert [r["method"] for r in json.loads(out)["rows"]] == ["linear", "eplb"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["plan", "absent.safetensors", "--topology", "2x2", "-o", "{out}"], 3, "absent.safetensors: file: no such file; check the path"),
        (["plan", "{cut}", "--topology", "2x2", "-o", "{out}"], 3, "cut.safetensors: file: not a whole safetensors file"),
        (["plan", "{trace}", "--topology", "two", "-o", "{out}"], 3, "two: topology: neither NxG nor a .json file"),
        (["plan", "{trace}", "--topology", "2x2", "--method", "magic", "-o", "{out}"], 2, "method 'magic' is unknown; use one of grace, "),
        (
            ["plan", "{trace}", "--topology", "2x2", "--method", "linear", "--option", "x=1", "-o", "{out}"],
            2,
            "method linear has no option 'x'",
        ),
        (
            ["plan", "{trace}", "--topology", "2x2", "--method", "linear", "--option", "x", "-o", "{out}"],
            2,
            "--option: 'x' is not NAME=VALUE",
        ),
        (["plan", "{trace}", "--topology", "2x2", "--redundancy", "0.5", "-o", "{out}"], 2, "redundancy 0.5 is out of range"),
        (["plan", "{trace}", "--topology", "2x2", "--slots-per-device", "3", "-o", "{out}"], 2, "use at least 4"),
        (["compare", "{trace}", "--topology", "2x2", "--methods", "a,b"], 2, "--methods: 'a' is unknown"),
        (
            ["compare", "{trace}", "--topology", "2x2", "--methods", "linear", "--eval", "{other}"],
            4,
            "use a trace of the model that was planned for",
        ),
        (["inspect", "{lost}"], 3, "lost.json: layer 0: devices_of_expert[0]: the expert is on no device"),
    ],
)
def test_errors_are_one_line_with_the_code_of_their_kind(capsys, trace, tmp_path, arguments, code, message):
    (tmp_path / "cut.safetensors").write_bytes(trace.read_bytes()[:200])
    synthetic_trace(tokens=30, experts=8, top_k=4).save(tmp_path / "other.safetensors")
    call(capsys, "plan", trace, "--topology", "2x2", "--method", "linear", "-o", tmp_path / "lost.json")
    value = json.loads((tmp_path / "lost.json").read_text())
    value["layers"][0]["devices_of_expert"][0] = []
    (tmp_path / "lost.json").write_text(json.dumps(value))
    names = {
        "out": tmp_path / "out.json",
        "trace": trace,
        "cut": tmp_path / "cut.safetensors",
        "other": tmp_path / "other.safetensors",
        "lost": tmp_path / "lost.json",
    }
    got, out, err = call(capsys, *[a.format(**names) for a in arguments])
    assert got == code
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("method", ["grace", "grace_paper"])
def test_planning_twice_gives_the_same_bytes(trace, tmp_path, method):
    """Two processes, different hash seeds and thread counts."""
    for name, hash_seed in (("a", "1"), ("b", "2")):
        environment = dict(os.environ, PYTHONHASHSEED=hash_seed, OMP_NUM_THREADS=hash_seed)
        command = [
            sys.executable,
            "-m",
            "grace_moe",
            "plan",
            str(trace),
            "--topology",
            "2x2",
            "--method",
            method,
            "-o",
            str(tmp_path / f"{name}.json"),
        ]
        subprocess.run(
            [*command, *(["--option", "effort=0.05"] if method == "grace" else [])], env=environment, check=True, capture_output=True
        )
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_no_traceback_from_a_real_process(tmp_path):
    result = subprocess.run([sys.executable, "-m", "grace_moe", "inspect", str(tmp_path / "no.json")], capture_output=True, text=True)
    assert result.returncode == 3
    assert result.stderr == f"error: {tmp_path}/no.json: file: No such file or directory; check the path\n"
