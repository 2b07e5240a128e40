"""What the tests of engines share: the embedded model as vLLM takes it, and vLLM on several processes.

A test that wants vLLM on four processes takes the fixture `serve`: `serve(plan=PATH, ...)` starts it, has it serve the prompts of
`prompts`, and returns a `serving.Outcome` (tokens, map, digests of weights, moved slots, logs). vLLM is imported once a session, so that
a start takes seconds; starts that are alike happen once. Modes are variables of the environment and arguments of vLLM:

    serve(plan, GRACE_MOE_LOCAL_ROUTING="1")                     # a mode is a variable
    serve(plan, redundant=16, probes=("my_probe",))              # `my_probe.install()` before the start, `my_probe.report(worker)` after
    serve(ranks=1)                                               # one process, the oracle of tokens
    serve(plan, prompts=many, new_tokens=64, eplb={"step_interval": 4})   # many rearrangements: `Outcome.moved()` has what each moved
"""

import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EMBEDDED = ROOT / "src/grace_moe/embedded"


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
    """Twelve prompts of 32 tokens of the embedded prose."""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(EMBEDDED)((EMBEDDED / "prose.txt").read_text()[:20_000])["input_ids"]
    return tuple(tuple(ids[40 * i : 40 * i + 32]) for i in range(12))


@pytest.fixture(scope="session")
def nursery(tmp_path_factory):
    """Who starts vLLM; everything it started is gone with the session."""
    from serving import Nursery

    found = Nursery(tmp_path_factory.mktemp("jobs"))
    yield found
    found.close()


@pytest.fixture(scope="session")
def serve(nursery, model, prompts):
    """Start vLLM and serve; see the top of this file."""
    from serving import Job

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
                **({"prompts": prompts} | job),
            )
        )

    return run
