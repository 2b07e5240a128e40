"""vLLM serves on four processes, two nodes of two by declaration, as one process does."""

import re

import numpy as np
import pytest

pytest.importorskip("vllm")

from grace_moe import evaluate
from grace_moe.engines import SlotMap
from grace_moe.placement import Placement

RANKS = 4


def by_rank(table):
    """`[layers, ranks, slots]` experts, ascending: a rank's slots may be in any order."""
    return np.sort(np.array(table).reshape(len(table), RANKS, -1))


def is_the_plan(served, plan):
    return (by_rank(served.map()) == by_rank(SlotMap.of(Placement.load(plan)).physical_to_logical)).all()


def replicas_are_alike(served):
    """Every expert has one digest in all its slots, and no two experts of a layer share one."""
    for experts, digests in zip(served.map().tolist(), served.digests(), strict=True):
        pairs = set(zip(experts, digests, strict=True))
        if not len(pairs) == len({expert for expert, _ in pairs}) == len({digest for _, digest in pairs}):
            return False
    return True


def expert_of(name):
    """The numbers of layer and expert in the name of a tensor, as matches."""
    return re.search(r"layers\.(\d+)\.", name), re.search(r"experts\.(\d+)\.", name)


@pytest.fixture(scope="module")
def plan(plan_file):
    return plan_file(slots_per_device=20)


def test_without_a_plan_tokens_are_those_of_one_process(serve, alone):
    served = serve()
    assert served.tokens == alone.tokens
    assert replicas_are_alike(served)


@pytest.mark.shows("vllm", "place", "served")
def test_a_plan_is_carried_out_by_its_rearrangement(serve, alone, plan):
    served = serve(plan, GRACE_MOE_STATIC_START="0")
    assert served.tokens == alone.tokens
    assert is_the_plan(served, plan)
    assert replicas_are_alike(served)
    assert all(served.said("the expert balancer follows"))
    first, *later = served.moved()
    assert first > 0
    assert not any(later)


@pytest.mark.shows("vllm", "static start", "served")
def test_the_plan_is_in_place_before_the_first_token(serve, alone, plan):
    served = serve(plan, probes=("serving.reads",))
    assert served.tokens == alone.tokens
    assert is_the_plan(served, plan)
    assert replicas_are_alike(served)
    assert served.moved()
    assert not any(served.moved()), "a rearrangement moved slots"
    assert all(served.said("the plan is in place"))
    for rank, found in enumerate(served.ranks):
        read = {(int(number[1]), int(expert[1])) for number, expert in map(expert_of, found["read"]) if expert}
        own = by_rank(served.map())[:, rank]
        assert read == {(layer, expert) for layer in range(len(own)) for expert in own[layer].tolist()}, "others' experts were read"


def test_a_plan_that_does_not_fit_starts_in_its_own_order(serve, alone, plan_file):
    served = serve(plan_file(slots_per_device=20), redundant=15 * 16)
    assert served.tokens == alone.tokens
    assert replicas_are_alike(served)
    assert all(served.said("experts load in vLLM's own order"))


@pytest.mark.shows("vllm", "hierarchical", "served")
@pytest.mark.parametrize("slots", [16, 20])
def test_each_token_goes_to_a_node_once_and_copies_are_those_of_the_replay(serve, alone, plan_file, routing, slots):
    """Without replicas nothing is drawn. Where a rank takes the near replica, nothing is drawn between two nodes either."""
    plan = plan_file(slots_per_device=slots)
    served = serve(
        plan, redundant=4 * slots - 64, probes=("serving.copies",), GRACE_MOE_DISPATCH="hierarchical", GRACE_MOE_LOCAL_ROUTING="1"
    )
    assert served.tokens == alone.tokens
    replayed = evaluate(Placement.load(plan), routing).copies
    sent = [[rank["sent"][layer] for rank in served.ranks] for layer in range(len(replayed.cross_node))]
    assert [sum(rank["tokens"] for rank in layer) for layer in sent] == [routing.num_tokens] * len(sent)
    assert [sum(rank["copies"] for rank in layer) for layer in sent] == replayed.cross_node.tolist()
    assert [sum(rank["pairs"] for rank in layer) for layer in sent] == replayed.pairs_cross_node.tolist()
