"""torchrun on two machines, as docs/cluster.md has it: each node's ranks in a network namespace of its own, joined by a link; and one."""

import json
import os
import signal
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from benchmarks.slow_link import nodes

from grace_moe.embedded import embedded_model
from grace_moe.errors import ModelError
from grace_moe.runtime.job.choosing import Sampling
from grace_moe.runtime.job.generation import GenerationOptions, Request, generate
from grace_moe.runtime.model.description import load_tokenizer
from grace_moe.runtime.model.loading import load_whole_model

from .conftest import contiguous, placement_of, scattered_with_replicas


@pytest.fixture
def two_nodes():
    """What to put before a command of each node, and the address of the first; gone after the test."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with nodes("1gbit") as (prefixes, link):
            if "refused" in link:
                pytest.skip(link)
            yield prefixes, "10.77.0.1"
    finally:
        signal.signal(signal.SIGTERM, before)
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert f"grace{os.getpid()}" not in left


def torchrun(*words, prefix=(), processes=2, **options):
    flags = [f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}") for name, value in options.items()]
    command = [*prefix, sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", *flags, "-m", "grace_moe", *words]
    return subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.ranks
def test_torchrun_on_two_nodes_gives_the_tokens_of_one_process(two_nodes, tmp_path):
    prefixes, address = two_nodes
    prompts = ["The experts", "Once upon a time", "def main", "Let x be"]
    placement_of("2x2", scattered_with_replicas(4), layers=4, experts=64).save(tmp_path / "plan.json")
    asked = [word for prompt in prompts for word in ("--prompt", prompt)]
    options = ["--new-tokens", "6", "--temperature", "0.9", "--seed", "5", "--dtype", "float32", "--json"]
    words = ["run", embedded_model(), "--placement", tmp_path / "plan.json", *asked, *options]
    where = {"nnodes": 2, "master_addr": address, "master_port": 29511}
    machines = [torchrun(*words, prefix=prefix, node_rank=node, **where) for node, prefix in enumerate(prefixes)]
    outputs = [machine.communicate(timeout=170) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert outputs[1][0] == ""  # rank 0 alone prints
    (run,) = json.loads(outputs[0][0])["runs"]
    assert run["cross_node_bytes_per_token"] > 0

    tokenizer = load_tokenizer(str(embedded_model()))
    requests = [Request(request_id=i, prompt=tuple(tokenizer.encode(prompt))) for i, prompt in enumerate(prompts)]
    sampled = GenerationOptions(new_tokens=6, sampling=Sampling(temperature=0.9, seed=5))
    alone = generate(load_whole_model(str(embedded_model())), requests, sampled)
    assert [row["tokens"] for row in run["completions"]] == [list(completion.tokens) for completion in alone.completions]


@pytest.mark.ranks(2)
def test_an_error_under_torchrun_is_said_once(tiny_model, tmp_path):
    """Both ranks find that there is no tokenizer."""
    placement_of("1x2", contiguous(2)).save(tmp_path / "plan.json")
    ranks = torchrun("run", tiny_model, "--placement", tmp_path / "plan.json", "--prompt", "The", standalone=True)
    out, error = ranks.communicate(timeout=170)
    assert ranks.returncode != 0
    assert out == ""
    assert len([line for line in error.splitlines() if line.startswith("error: ")]) == 1, error
    assert f"exitcode  : {ModelError.exit_code} " in error
