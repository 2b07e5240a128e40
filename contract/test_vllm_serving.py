"""vLLM serves on four processes, two nodes of two by declaration, as one process does."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vllm")

from grace_moe import evaluate
from grace_moe.engines import SlotMap
from grace_moe.engines.live.replica_choice import POLICIES
from grace_moe.placement import Placement
from serving import RankError, own_rule

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


def test_a_start_that_fails_says_why_and_leaves_nothing_running(nursery, serve):
    shared = set(Path("/dev/shm").glob("*cpushm*"))
    with pytest.raises(RankError, match=r"rank \d ended with 1"):
        serve(engine={"model_impl": "no such"})
    pid = nursery.process.pid
    assert Path(f"/proc/{pid}/task/{pid}/children").read_text() == ""
    assert not set(Path("/dev/shm").glob("*cpushm*")) - shared


def test_without_a_plan_tokens_are_those_of_one_process(serve, alone):
    served = serve()
    assert served.tokens == alone.tokens
    assert replicas_are_alike(served)


@pytest.mark.shows("vllm", "place", "served")
def test_a_plan_is_carried_out_beside_the_passes(serve, alone, plan, prompts):
    """Asynchronously, a layer a pass: the same requests again and again, so that there are passes for all layers."""
    again = 8
    served = serve(plan, prompts=prompts * again, eplb={"use_async": True}, GRACE_MOE_STATIC_START="0")
    assert served.tokens == alone.tokens * again
    assert is_the_plan(served, plan)
    assert replicas_are_alike(served)
    assert served.moved() == []  # vLLM never stopped to move


@pytest.mark.shows("vllm", "place", "served")
def test_a_plan_is_carried_out_by_its_rearrangement(serve, alone, plan):
    served = serve(plan, GRACE_MOE_STATIC_START="0")
    assert served.tokens == alone.tokens
    assert is_the_plan(served, plan)
    assert replicas_are_alike(served)
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
    assert all(served.said("Experts load in vLLM's own order"))


def by_layer(served, what):
    """What the hierarchical dispatch counted, over all ranks."""
    return np.array([[layer[what] for layer in rank["sent"]] for rank in served.ranks]).sum(axis=0).tolist()


def chosen(plan, choice):
    """A plan as a replay takes it, with the replica choice that `GRACE_MOE_CHOICE` names."""
    placement = Placement.load(plan)
    layers = tuple(replace(layer, replica_choice=POLICIES[choice]) for layer in placement.layers)
    return replace(placement, layers=layers)


@pytest.mark.shows("vllm", "near", "served")
@pytest.mark.shows("vllm", "joint", "served")
@pytest.mark.shows("vllm", "hierarchical", "served")
@pytest.mark.parametrize(("slots", "choice"), [(16, "near"), (20, "near"), (20, "joint")])
def test_each_token_goes_to_a_node_once_and_copies_are_those_of_the_replay(serve, alone, plan_file, routing, slots, choice):
    """Without replicas nothing is drawn. With two nodes nothing is drawn between them either, but which replica of a joint choice."""
    plan = plan_file(slots_per_device=slots)
    served = serve(plan, redundant=4 * slots - 64, probes=("serving.copies",), GRACE_MOE_DISPATCH="hierarchical", GRACE_MOE_CHOICE=choice)
    assert served.tokens == alone.tokens
    assert all(served.said("replicas are chosen"))
    replayed = evaluate(chosen(plan, choice), routing).copies
    assert by_layer(served, "tokens") == [routing.num_tokens] * len(replayed.cross_node)
    assert by_layer(served, "copies") == replayed.cross_node.tolist()
    if choice == "near":
        assert by_layer(served, "pairs") == replayed.pairs_cross_node.tolist()


def test_copies_of_vllms_own_choice_are_those_of_its_rule(serve, alone, plan):
    served = serve(plan, probes=("serving.copies", "serving.routing"), GRACE_MOE_DISPATCH="hierarchical", GRACE_MOE_CHOICE="theirs")
    placement = Placement.load(plan)
    assert served.tokens == alone.tokens
    assert by_layer(served, "copies") == own_rule.copies(served, SlotMap.of(placement), placement.topology)
