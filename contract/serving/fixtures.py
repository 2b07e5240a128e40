"""What the tests of engines share: the embedded model as vLLM takes it, and vLLM on several processes.

A test that wants vLLM on four processes takes the fixture `serve`: `serve(plan=PATH, ...)` starts it, has it serve the prompts of
`prompts`, and returns a `serving.Outcome` (tokens, map, digests of weights, moved slots, logs). vLLM is imported once a session, so that
a start takes seconds; starts that are alike happen once. Modes are variables of the environment and arguments of vLLM:

    serve(plan, GRACE_MOE_LOCAL_ROUTING="1")                     # a mode is a variable
    serve(plan, redundant=16, probes=("my_probe",))              # see `serving.Job`
    serve(ranks=1)                                               # one process, the oracle of tokens
    serve(plan, prompts=many, new_tokens=64, eplb={"step_interval": 4})   # many rearrangements: `Outcome.moved()` has what each moved
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from grace_moe import RoutingTrace, Topology, plan
from grace_moe.engines.imported import Hints
from grace_moe.engines.requests import RoutedRequest, trace_of_requests
from serving.job import Job
from serving.nursery import Nursery

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "src/grace_moe/embedded"
NODES = "2x2"
"""The nodes that plans declare; the processes are of one machine."""
NEW_TOKENS = 16


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The embedded OLMoE with an output layer of its own: vLLM's OLMoE knows no tied one."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("model") / "olmoe"
    shutil.copytree(EMBEDDED, folder, ignore=shutil.ignore_patterns("__pycache__", "*.py"))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    return folder


@pytest.fixture(scope="session")
def prompts():
    """Twelve prompts of 24 to 35 tokens of the embedded prose."""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(EMBEDDED)((EMBEDDED / "prose.txt").read_text()[:20_000])["input_ids"]
    return tuple(tuple(ids[40 * i : 40 * i + 24 + i]) for i in range(12))


@pytest.fixture(scope="session")
def nursery(tmp_path_factory):
    """Who starts vLLM; everything it started is gone with the session."""
    found = Nursery(tmp_path_factory.mktemp("jobs"))
    yield found
    found.close()


@pytest.fixture(scope="session")
def serve(nursery, model, prompts):
    """Start vLLM and serve; see the top of this file."""

    def run(plan=None, *, redundant=16, eplb=None, engine=None, **job):
        names = {name: job.pop(name) for name in list(job) if name.isupper()}
        environment = names if plan is None else names | {"GRACE_MOE_PLAN": str(plan)}
        return nursery.run(
            Job(
                model=str(model),
                environment=environment,
                eplb={"num_redundant_experts": redundant} | (eplb or {}),
                # vLLM's own OLMoE is none of its balancer's models; Transformers' is.
                engine={"model_impl": "transformers"} | (engine or {}),
                **({"prompts": prompts, "new_tokens": NEW_TOKENS} | job),
            )
        )

    return run


@pytest.fixture(scope="session")
def alone(serve):
    """The outcome on one process, a request at a time, with its routing: the oracle."""
    return serve(ranks=1, engine={"max_num_seqs": 1}, probes=("serving.routing",))


@pytest.fixture(scope="session")
def routing(alone, model, prompts) -> RoutingTrace:
    """The trace of what `alone` served: request i is prompt i."""
    experts = np.array(alone.ranks[0]["experts"], dtype=np.int32).transpose(1, 0, 2)
    lengths = [len(prompt) + NEW_TOKENS - 1 for prompt in prompts]  # the last token is not run through the model
    parts = np.split(experts, np.cumsum(lengths))
    requests = [RoutedRequest(topk_ids=ids, prompt_tokens=len(prompt)) for ids, prompt in zip(parts[:-1], prompts, strict=True)]
    return trace_of_requests(
        requests, Hints(), num_experts=json.loads((model / "config.json").read_text())["num_experts"], source="served"
    ).trace


@pytest.fixture(scope="session")
def plan_file(routing, tmp_path_factory):
    """`plan_file(method="grace", slots_per_device=20)`: a plan for the prompts, on 2 nodes of 2."""
    folder, made = tmp_path_factory.mktemp("plans"), {}

    def make(**options):
        name = "-".join(f"{key}={value}" for key, value in options.items()) or "plan"
        if name not in made:
            made[name] = folder / f"{name}.json"
            plan(routing, Topology.parse(NODES), **options).save(made[name])
        return made[name]

    return make
