"""`run --adapt`: the same completions as without, and what it says of how it went."""

import json

import pytest

torch = pytest.importorskip("torch")

from grace_moe.cli import main
from grace_moe.embedded import embedded_model
from grace_moe.trace import synthetic_trace

from .conftest import placement_of

pytestmark = pytest.mark.usefixtures("warm")


def run(capsys, tmp_path, *arguments):
    placement_of("1x2", lambda e: (e // 32,) if e % 8 else (0, 1), layers=4, experts=64).save(tmp_path / "plan.json")
    synthetic_trace(tokens=300, layers=4, experts=64, top_k=8).save(tmp_path / "trace.safetensors")
    text = ("--text", str(embedded_model() / "prose.txt"), "--requests", "6", "--prompt-tokens", "20", "--new-tokens", "12", "--ignore-eos")
    words = ["run", str(embedded_model()), "--placement", str(tmp_path / "plan.json"), "--local", "1x2", *text, *arguments]
    with pytest.raises(SystemExit) as exit_:
        main(words)
    out, err = capsys.readouterr()
    return exit_.value.code or 0, out, err


@pytest.mark.ranks(2)
def test_completions_are_those_without(capsys, tmp_path):
    both = []
    for adapt in ([], ["--adapt", str(tmp_path / "trace.safetensors")]):
        code, out, err = run(capsys, tmp_path, *adapt, "--dtype", "float32", "--json")
        assert code == 0, err
        both += json.loads(out)["runs"]
    without, adapting = both
    assert [row["tokens"] for row in adapting["completions"]] == [row["tokens"] for row in without["completions"]]
    assert "adapt" not in without
    assert (adapting["adapt"]["steps"], adapting["adapt"]["alive"], adapting["adapt"]["rolled_back"]) == (12, True, 0)
    assert adapting["expert_bytes_per_rank"][0] == adapting["expert_bytes_per_rank"][1]


@pytest.mark.parametrize("option", [["--predict"], ["--dispatch", "vanilla"]])
def test_what_has_no_effect_with_it_is_refused(capsys, tmp_path, option):
    code, _, err = run(capsys, tmp_path, "--adapt", str(tmp_path / "trace.safetensors"), *option)
    assert code == 2
    assert "--adapt: " in err


def test_a_trace_of_another_model_is_refused(capsys, tmp_path):
    synthetic_trace(tokens=30, layers=2, experts=64, top_k=8).save(tmp_path / "other.safetensors")
    code, _, err = run(capsys, tmp_path, "--adapt", str(tmp_path / "other.safetensors"))
    assert code == 4, err
    assert "has other layers or experts than" in err
