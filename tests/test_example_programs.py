"""examples/ and the snippet of docs/run.md, as users run them: under torchrun, on the embedded model."""

import re
import subprocess
import sys

import pytest

pytest.importorskip("torch")

from grace_moe import Topology, plan
from grace_moe.embedded import embedded_model
from grace_moe.trace import synthetic_trace
from tests.house import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a user has: a model, a plan with replicas for two ranks, and a text."""
    folder = tmp_path_factory.mktemp("user")
    trace = synthetic_trace(tokens=300, layers=4, experts=64, top_k=8)
    plan(trace, Topology.parse("1x2"), redundancy=1.25).save(folder / "plan.json")
    (folder / "OLMoE-1B-7B").symlink_to(embedded_model())
    (folder / "wiki.txt").write_text((embedded_model() / "prose.txt").read_text()[:700])  # one batch, learnt again and again
    return folder


def torchrun(folder, program, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", program, *arguments]
    result = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=170, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.parametrize("precision", [[], ["--bfloat16"]])
def test_training_lowers_the_loss(folder, precision):
    words = ["./OLMoE-1B-7B", "plan.json", "wiki.txt", "--steps", "4", "--batch", "1", "--length", "64", "--accumulate", "1", *precision]
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+), norm", torchrun(folder, ROOT / "examples" / "train.py", *words))]
    assert len(losses) == 4
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_serving_completes_each_prompt(folder):
    prompts = ["The experts", "Once upon a time", "Let x be"]
    out = torchrun(folder, ROOT / "examples" / "serve_plan.py", "./OLMoE-1B-7B", "plan.json", *prompts, "--new-tokens", "4")
    for prompt in prompts:
        assert prompt in out


def test_the_snippet_of_the_page_runs_as_written(folder):
    (snippet,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "run.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (folder / "snippet.py").write_text(snippet)
    assert "loss" in torchrun(folder, folder / "snippet.py")
