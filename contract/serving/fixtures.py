"""What the tests of engines share: the embedded model as vLLM takes it, and vLLM on several processes.

A test that wants vLLM on four processes takes the fixture `serve`: `serve(plan=PATH, ...)` starts it, has it serve the prompts of
`prompts`, and returns a `serving.Outcome` (tokens, map, digests of weights, moved slots, logs). vLLM is imported once a session, so that
a start takes seconds; starts that are alike happen once. Modes are variables of the environment and arguments of vLLM:

    serve(plan, GRACE_MOE_CHOICE="near")                         # a mode is a variable
    serve(plan, redundant=16, probes=("my_probe",))              # see `serving.Job`
    serve(ranks=1)                                               # one process, the oracle of tokens
    serve(plan, prompts=many, new_tokens=64, eplb={"step_interval": 4})   # many rearrangements: `Outcome.moved()` has what each moved
"""

import pytest

from grace_moe import RoutingTrace, Topology, plan
from serving import embedded
from serving.job import Job
from serving.nursery import Nursery

NODES = "2x2"
"""The nodes that plans declare; the processes are of one machine."""
NEW_TOKENS = 16


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The embedded OLMoE's folder, as vLLM takes it."""
    return embedded.write_model(tmp_path_factory.mktemp("model") / "olmoe")


@pytest.fixture(scope="session")
def prompts():
    """Twelve prompts of 24 to 35 tokens of the embedded prose."""
    ids = embedded.text_ids("prose.txt")
    return tuple(tuple(ids[40 * i : 40 * i + 24 + i]) for i in range(12))


@pytest.fixture(scope="session")
def nursery(tmp_path_factory):
    """Who starts vLLM; everything it started is gone with the session."""
    found = Nursery(tmp_path_factory.mktemp("jobs"))
    yield found
    found.close()


@pytest.fixture(scope="session", autouse=True)
def _nursery_imports(request):
    """While the first tests run, which may not need it."""
    if any("nursery" in item.fixturenames for item in request.session.items):
        request.getfixturevalue("nursery").start()


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
                engine=embedded.ENGINE | (engine or {}),
                **({"prompts": prompts, "new_tokens": NEW_TOKENS} | job),
            )
        )

    return run


@pytest.fixture(scope="session")
def alone(serve):
    """The outcome on one process, a request at a time, with its routing: the oracle."""
    return serve(ranks=1, engine=embedded.ONE_BY_ONE, probes=("serving.routing",))


@pytest.fixture(scope="session")
def routing(alone, prompts) -> RoutingTrace:
    """The trace of what `alone` served: request i is prompt i."""
    return embedded.trace_of(alone, prompts, NEW_TOKENS)


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
