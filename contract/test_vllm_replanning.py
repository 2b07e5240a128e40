"""vLLM re-plans while it serves on four processes: nothing on steady traffic; after a shift fewer copies, within the budget; the same tokens."""

import numpy as np
import pytest

pytest.importorskip("vllm")

from grace_moe import Topology, plan
from serving import embedded

PROMPT, NEW_TOKENS, INTERVAL, RANKS, AT_ONCE = 24, 4, 4, 4, 8
"""Prompts are of as many tokens, and all requests of a window begin and end with it: 4 ranks of 8 requests."""
STEADY, AFTER = 22, 10
"""Windows."""
BUDGET = 32


def prompts(name, windows):
    """Pieces of a text in random order, so that no part of it is a topic of its own."""
    ids = embedded.text_ids(name)
    order = np.random.default_rng(0).permutation(len(ids) // PROMPT)[: windows * RANKS * AT_ONCE]
    return tuple(tuple(ids[PROMPT * i : PROMPT * (i + 1)]) for i in order.tolist())


@pytest.fixture(scope="module")
def prose_plan(serve, tmp_path_factory):
    """Made on some of the prose that is served first."""
    planned_on = prompts("prose.txt", 2)
    seen = serve(ranks=1, prompts=planned_on, new_tokens=NEW_TOKENS, engine=embedded.ONE_BY_ONE, probes=("serving.routing",))
    path = tmp_path_factory.mktemp("prose") / "plan.json"
    plan(embedded.trace_of(seen, planned_on, NEW_TOKENS), Topology.parse("2x2"), slots_per_device=20).save(path)
    return path


@pytest.mark.shows("vllm", "re-plan", "served")
def test_it_moves_nothing_until_traffic_changes_and_then_sends_less(serve, prose_plan):
    spoken = prompts("prose.txt", STEADY) + prompts("code.txt", AFTER)
    common = {"prompts": spoken, "new_tokens": NEW_TOKENS}
    served = serve(
        prose_plan,
        **common,
        probes=("serving.windows",),
        eplb={"step_interval": INTERVAL, "window_size": INTERVAL},
        GRACE_MOE_DISPATCH="hierarchical",
        GRACE_MOE_REPLAN="1",
        GRACE_MOE_MOVES=str(BUDGET),
    )
    assert all(served.said("re-planning decides by choices of tokens"))
    assert served.tokens == serve(ranks=1, engine={"max_num_seqs": RANKS * AT_ONCE}, **common).tokens
    moved = np.array(served.moved())
    assert not moved[:STEADY].any()
    assert 0 < moved[STEADY:].max() <= BUDGET
    sent = np.array([[(w["tokens"], w["copies"]) for w in rank["windows"]] for rank in served.ranks]).sum(axis=0)
    tokens, copies = np.diff(sent, axis=0).T  # of each window but the first: of window 1 comes first
    per_token, most = copies / tokens, moved.argmax()  # a few slots may move at once, before more of the code was seen
    before, after = per_token[STEADY - 1 : most], per_token[most:]
    assert after.mean() < before.mean()
