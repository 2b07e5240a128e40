"""`run --adapt`: the same completions as without, and what it says of how it went."""

import json
import re
from importlib.resources import files
from urllib.request import urlopen

import pytest

torch = pytest.importorskip("torch")

from prometheus_client.parser import text_string_to_metric_families

from grace_moe.cli import main
from grace_moe.embedded import embedded_model
from grace_moe.runtime.job.events import Listener
from grace_moe.runtime.job.generation import GenerationOptions, Request
from grace_moe.runtime.job.job import Job, RunSpec
from grace_moe.runtime.job.launch import run_local
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
    for adapt in ([], ["--adapt", str(tmp_path / "trace.safetensors"), "--metrics-port", "0"]):
        code, out, err = run(capsys, tmp_path, *adapt, "--dtype", "float32", "--json")
        assert code == 0, err
        assert bool(re.search(r"^metrics: http://localhost:\d+/metrics$", err, re.MULTILINE)) == bool(adapt)
        both += json.loads(out)["runs"]
    without, adapting = both
    assert [row["tokens"] for row in adapting["completions"]] == [row["tokens"] for row in without["completions"]]
    assert "adapt" not in without
    assert (adapting["adapt"]["steps"], adapting["adapt"]["alive"], adapting["adapt"]["rolled_back"]) == (12, True, 0)
    assert adapting["expert_bytes_per_rank"][0] == adapting["expert_bytes_per_rank"][1]


class SeenError(Exception):
    """All was scraped: the run need not go on."""


@pytest.mark.ranks(2)
def test_a_run_is_scraped_while_it_serves(tmp_path):
    """The same metrics as of `simulate`, from rank 0, load and bytes by tier of the traffic included."""
    placement_of("2x1", lambda e: (e // 32,) if e % 8 else (0, 1), layers=4, experts=64).save(tmp_path / "plan.json")
    synthetic_trace(tokens=300, layers=4, experts=64, top_k=8).save(tmp_path / "trace.safetensors")
    board = json.loads((files("grace_moe.adapt.telemetry") / "dashboard.json").read_text())
    promised = {name for panel in board["panels"] for target in panel["targets"] for name in re.findall(r"grace_moe_\w+", target["expr"])}
    ports, found = [], {}

    def scrape(said):
        if not ports:
            return
        with urlopen(f"http://localhost:{ports[0]}/metrics") as answer:
            samples = [s for family in text_string_to_metric_families(answer.read().decode()) for s in family.samples]
        found.update({(sample.name, *sample.labels.values()): sample.value for sample in samples})
        if promised <= {name for name, *_ in found}:
            raise SeenError

    job = Job(
        model=str(embedded_model()),
        requests=tuple(Request(request_id=number, prompt=(5, 6, 7 + number)) for number in range(8)),
        options=GenerationOptions(new_tokens=900, batch_size=4, stop_at_eos=False),
        runs=(RunSpec(name="hierarchical", placement=str(tmp_path / "plan.json"), dispatch="hierarchical"),),
        adapt=str(tmp_path / "trace.safetensors"),
        metrics_port=0,
    )
    with pytest.raises(SeenError):
        run_local(job, 2, listener=Listener(on_tokens=scrape, on_metrics=ports.append))
    assert found[("grace_moe_alive",)] == 1
    assert found[("grace_moe_steps_total",)] >= 10
    assert found[("grace_moe_device_load_ratio", "0")] + found[("grace_moe_device_load_ratio", "1")] == pytest.approx(2)
    assert found[("grace_moe_balance_ratio", "actual")] >= 1
    copies = found[("grace_moe_sent_bytes_per_token_layer", "between_nodes")] / (2 * 192 * 4)
    assert 0 < copies <= 1  # to one other node


@pytest.mark.parametrize("option", [["--predict"], ["--dispatch", "vanilla"]])
def test_what_has_no_effect_with_it_is_refused(capsys, tmp_path, option):
    code, _, err = run(capsys, tmp_path, "--adapt", str(tmp_path / "trace.safetensors"), *option)
    assert code == 2
    assert "--adapt: " in err


def test_metrics_of_nothing_are_refused(capsys, tmp_path):
    for option in (["--metrics-port", "0"], ["--log", str(tmp_path / "log.jsonl")]):
        code, _, err = run(capsys, tmp_path, *option)
        assert code == 2
        assert "--metrics-port, --log: they show what --adapt does" in err


def test_a_trace_of_another_model_is_refused(capsys, tmp_path):
    synthetic_trace(tokens=30, layers=2, experts=64, top_k=8).save(tmp_path / "other.safetensors")
    code, _, err = run(capsys, tmp_path, "--adapt", str(tmp_path / "other.safetensors"))
    assert code == 4, err
    assert "has other layers or experts than" in err
