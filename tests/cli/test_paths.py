"""Outputs are tried before the work, and never are inputs, whichever command."""

import json
import os
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from grace_moe import cli
from grace_moe.cli import COMMANDS, grace_moe, main
from grace_moe.cli.paths import FileCommand, OutputPath
from grace_moe.errors import GraceError, UsageError
from grace_moe.trace import RoutingTrace, synthetic_trace


def command(name):
    return grace_moe.get_command(click.Context(grace_moe), name)


def invoke(*arguments):
    return CliRunner().invoke(grace_moe, [str(a) for a in arguments])


@pytest.fixture
def trace(tmp_path, monkeypatch) -> Path:
    """In the working folder, which is otherwise empty."""
    monkeypatch.chdir(tmp_path)
    synthetic_trace(tokens=60, layers=1, experts=8, top_k=2).save(Path("t.safetensors"))
    return Path("t.safetensors")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_writes_files_checks_them(name):
    writes = [p for p in command(name).params if p.opts[0] in ("-o", "--loads", "--profile")]
    assert all(isinstance(p.type, OutputPath) for p in writes)
    assert not writes or isinstance(command(name), FileCommand)


@pytest.mark.parametrize(
    "arguments",
    [
        "plan t.safetensors --topology 2x2 --method linear -o t.safetensors",
        "plan t.safetensors --topology 2x2 --method linear -o ./x/../t.safetensors",
        "plan t.safetensors --topology 2x2 --method linear -o link",
        "plan t.safetensors --topology 2x2 --method linear -o hard",
        "plan t.safetensors --topology top.json --method linear -o top.json",
        "plan t.safetensors --topology 2x2 --start p.json -o p.json",
        "report t.safetensors --topology 2x2 -o t.safetensors",
        "report t.safetensors --topology 2x2 --eval e.safetensors -o e.safetensors",
        "export p.json --engine vllm -o p.json",
        "export p.json --engine vllm --trace t.safetensors -o t.safetensors",
        "export p.json --engine vllm --trace t.safetensors -o m.json --loads ./m.json",
        "export p.json --engine vllm --model model -o model/config.json",
        "import --engine npz t.safetensors -o t.safetensors",
        "import --engine tensorrt-llm model -o model/config.json",
        "record model --text words.txt -o words.txt",
        "record model --text words.txt -o model/config.json",
        "run model --placement p.json --local 2x2 --prompt a --profile p.json",
    ],
)
def test_an_input_is_never_overwritten(trace, arguments):
    Path("x").mkdir()
    Path("model").mkdir()
    for name in ("p.json", "top.json", "e.safetensors", "words.txt", "model/config.json"):
        Path(name).write_text("as it was")
    Path("link").symlink_to(trace)
    os.link(trace, "hard")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    result = invoke(*arguments.split())
    assert isinstance(result.exception, UsageError)
    assert "would overwrite" in str(result.exception)
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_a_folder_that_is_missing_is_found_before_the_work(trace):
    result = invoke("plan", "not-read.safetensors", "--topology", "2x2", "-o", "missing/plan.json")
    assert isinstance(result.exception, GraceError)
    assert str(result.exception) == "missing/plan.json: can't be written: No such file or directory; check the folder and the disk"


def test_a_device_may_be_written_into(trace):
    assert invoke("plan", trace, "--topology", "2x2", "--method", "linear", "-o", "/dev/null").exit_code == 0


def test_other_files_may_be_written_again(trace):
    for _ in range(2):
        assert invoke("plan", trace, "--topology", "2x2", "--method", "linear", "-o", "plan.json").exit_code == 0
    assert json.loads(Path("plan.json").read_text())["format"] == "grace-moe.placement"
    assert sorted(p.name for p in Path().iterdir()) == ["plan.json", "t.safetensors"]


def test_control_characters_of_names_do_not_reach_the_terminal(trace):
    result = invoke("plan", trace, "--topology", "2x2", "--method", "linear", "-o", "p\x1b[31m\u202eq.json")
    assert result.exit_code == 0
    assert result.output.startswith("p?[31m?q.json: linear for 2x2")


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_control_characters_of_files_do_not_reach_the_terminal(trace, form):
    evil = "\x1b]0;owned\x07\x9b31m\r\u202e"
    replace(RoutingTrace.load(trace), model=evil, dataset=evil).save("evil.safetensors")
    assert invoke("plan", "evil.safetensors", "--topology", "2x2", "--method", "linear", "-o", "p.json").exit_code == 0
    for path in ("evil.safetensors", "p.json"):
        found = invoke("inspect", path, *form)
        assert found.exit_code == 0
        assert not set(found.output) & set("\x1b\x07\x9b\r\u202e")


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "no\x1b[31m.safetensors", "--topology", "2x2", "-o", "p.json"),
        ("plan", "t.safetensors", "--topology", "2\x9b31mx2", "-o", "p.json"),
        ("plan", "t.safetensors", "--topology", "2x2", "-o", "p.json", "--method", "\x1b[31m"),
        ("plan", "t.safetensors", "--topology", "2x2", "-o", "missing\x1b[31m/p.json"),
        ("plan", "t.safetensors", "--\x1b[31m"),
        ("\x1b[31m",),
        ("inspect", "no\udcff\x1b.safetensors"),
    ],
)
def test_control_characters_of_errors_do_not_reach_the_terminal(trace, arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(list(arguments))
    assert exit.value.code in (1, 2, 3)
    shown = "".join(capsys.readouterr())
    assert not set(shown) & set("\x1b\x9b\udcff")


def test_commands_print_at_one_door():
    """What a command says goes through `say` or `show_json`, or is made printable where it stands."""
    lines = [(p.name, line) for p in Path(cli.__file__).parent.glob("*.py") for line in p.read_text().splitlines() if "click.echo(" in line]
    assert all(
        name == "output.py" or "json.dumps(" in line or "printable(" in line or "{prompt}" in line or 'click.echo("' in line
        for name, line in lines
    ), lines
