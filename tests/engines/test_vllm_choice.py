"""Our replica choice for vLLM's router, without vLLM; `make contract` runs it in vLLM's own code and by Triton's interpreter."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_moe.choice import choice_table
from grace_moe.engines.live.given_maps import GivenMaps, LiveMap
from grace_moe.engines.live.replica_choice import POLICIES, SEED, rank_choice
from grace_moe.engines.slot_map import SlotMap
from grace_moe.engines.vllm.model_choice import ModelChoice
from grace_moe.engines.vllm.own_tokens import best_choice, routes_own_tokens
from grace_moe.engines.vllm.seams import decode_alone
from grace_moe.placement import LayerPlacement
from grace_moe.topology import Topology
from tests.engines.plans import EXPERTS, HELD, RANKS, placement

TOPOLOGY = Topology.parse("2x2")
DECODE = ((0.0, 1.0), (1.0, 0.0), (1.0, 0.0), (1.0, 0.0))
"""Weights for decode of the experts of `plans.HELD`."""


def slots_of(chosen, layer, ids):
    """The slots of a layer's pairs, which are not recorded."""
    return chosen.slots(layer, ids, 0, torch.zeros(8, dtype=torch.int32), torch.tensor(False), None)


def model_choice(choice, rank=1, plan=None, known=True):
    """Of the CPU, for the plan of these tests, which was given to the engine or not."""
    plan = plan or placement()
    given = GivenMaps()
    if known:
        given.remember(LiveMap(slots=SlotMap.of(plan), placement=plan))
    found = ModelChoice(plan, rank, choice, given, torch.device("cpu"))
    found.follow(enumerate(SlotMap.of(plan).physical_to_logical))
    return found


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(POLICIES)),
    st.integers(0, RANKS - 1),
    st.lists(st.permutations(range(-1, EXPERTS)).map(lambda ids: ids[:3]), min_size=1, max_size=9),
    st.integers(0, 2**31 - 10),
)
def test_the_slots_are_those_of_the_replicas_that_a_replay_chooses(choice, rank, ids, first):
    layer = placement().layers[1]
    row = np.array(HELD[1])
    topk_ids, tokens = np.array(ids), np.arange(first, first + len(ids))
    devices = choice_table(layer, TOPOLOGY, POLICIES[choice]).choose(3, topk_ids, np.full(len(ids), rank), tokens, seed=SEED)
    slots = (
        rank_choice(layer, row, TOPOLOGY, rank, choice)
        .convert(torch.from_numpy)
        .slots(*map(torch.from_numpy, (topk_ids, tokens)), decode=False)
    )
    assert (np.where(slots >= 0, slots // 2, -1) == devices).all()
    assert (row[slots[slots >= 0]] == topk_ids[topk_ids >= 0]).all()


def test_an_id_that_is_no_experts_has_no_slot():
    slots = rank_choice(placement().layers[0], np.array(HELD[0]), TOPOLOGY, 0, "joint").slots(
        np.array([[EXPERTS, -1, 2]]), np.array([0]), decode=False
    )
    assert slots.tolist()[0][:2] == [-1, -1]
    assert slots[0, 2] in (3, 4)


def test_decode_has_its_own_replicas():
    plan = placement()
    plan = type(plan)(
        topology=plan.topology,
        num_experts=EXPERTS,
        layers=tuple(LayerPlacement(**(vars(layer) | {"decode_weights": DECODE})) for layer in plan.layers),
    )
    chosen = model_choice("near", rank=3, plan=plan)
    ids = torch.tensor([[0, 1]])
    chosen.begin(1, [0])
    prefill = slots_of(chosen, 0, ids)
    chosen.decode = True
    chosen.begin(1, [0])
    assert prefill.tolist() in ([[6, 1]], [[6, 2]])  # expert 0 is on rank 3 itself; 1 is away, on ranks 0 and 1
    assert slots_of(chosen, 0, ids).tolist() == [[6, 1]]  # in decode only on its first rank


def test_a_rank_counts_its_tokens_so_that_one_token_steps_draw_anew():
    chosen = model_choice("near", rank=2)
    ids = torch.tensor([[1]])  # on ranks 0 and 1, both away
    seen = set()
    for _ in range(20):
        chosen.begin(1, [0])
        seen.add(int(slots_of(chosen, 0, ids)))
    assert seen == {1, 2}
    assert chosen.routed == 20
    chosen.begin(6, [0, 4])
    assert [int(step[0]) for step in chosen.steps] == [20, 24]


def test_a_map_that_is_not_of_the_plan_is_shared_evenly_and_followed_row_by_row():
    chosen = model_choice("joint")
    natural = np.array([0, 1, 2, 3, 0, 1, 2, 3])
    before = chosen.layers[1]
    chosen.follow([(0, natural)])
    assert chosen.layers[1] is before
    assert chosen.layers[0].layer_id == 1
    assert chosen.layers[0].slot_of_ED.tolist() == [[0, -1, 4, -1], [1, -1, 5, -1], [-1, 2, -1, 6], [-1, 3, -1, 7]]
    same = chosen.layers[0]
    chosen.follow([(0, natural)])
    assert chosen.layers[0] is same  # nothing is made anew where nothing changed


def test_a_row_is_known_in_whatever_order_ranks_have_their_slots():
    plan = placement(weights=((0.75, 0.25),) * EXPERTS)
    given = GivenMaps()
    given.remember(LiveMap(slots=SlotMap.of(plan), placement=plan))
    swapped = np.array(HELD[0]).reshape(RANKS, 2)[:, ::-1].ravel()
    assert given.layer(0, swapped) is plan.layers[0]
    assert given.layer(1, swapped) is None
    assert given.layer(0, swapped[:4]) is None


def test_pairs_of_real_tokens_are_recorded_where_they_should():
    chosen, load = model_choice("near", rank=0), torch.zeros(8, dtype=torch.int32)
    chosen.begin(2, [0])
    ids = torch.tensor([[0, 2], [2, -1], [0, 2]], dtype=torch.int32)  # the last is padding
    slots = chosen.slots(0, ids, 0, load, torch.tensor(True), torch.tensor(2, dtype=torch.int32))
    assert slots.dtype == torch.int32
    assert (load == torch.bincount(slots[:2][slots[:2] >= 0], minlength=8)).all()
    chosen.slots(0, ids, 0, load, torch.tensor(False), None)
    assert load.sum() == 3
    chosen.slots(0, ids, 0, load, torch.tensor(True), None)
    assert load.sum() == 3 + 5


def output(new=0, cached=(), scheduled=(), drafts=()):
    """What vLLM's scheduler says of a step: cached requests with tokens that they have put out."""
    names = [f"r{i}" for i in range(len(cached))]
    return SimpleNamespace(
        scheduled_new_reqs=[None] * new,
        scheduled_cached_reqs=SimpleNamespace(req_ids=names, num_output_tokens=list(cached)),
        num_scheduled_tokens=dict(zip(names, scheduled, strict=True)),
        scheduled_spec_decode_tokens=dict(drafts),
    )


@pytest.mark.parametrize(
    ("step", "decode"),
    [
        (output(cached=(3, 1), scheduled=(1, 1)), True),
        (output(cached=(3,), scheduled=(3,), drafts={"r0": [5, 6]}), True),
        (output(new=1, cached=(3,), scheduled=(1,)), False),
        (output(cached=(3, 0), scheduled=(1, 1)), False),  # the last token of a prompt
        (output(cached=(3,), scheduled=(40,)), False),  # preempted, and computed again
    ],
)
def test_a_batch_is_decode_where_every_request_is_past_its_prompt(step, decode):
    assert decode_alone(step) is decode


def config(**changes):
    values = {
        "tensor_parallel_size": 1,
        "data_parallel_size": 4,
        "use_sequence_parallel_moe": False,
        "all2all_backend": "deepep_low_latency",
    }
    return SimpleNamespace(**(values | changes))


def test_ranks_choose_apart_only_where_each_routes_its_own_tokens():
    assert routes_own_tokens(config())
    assert routes_own_tokens(config(tensor_parallel_size=2, use_sequence_parallel_moe=True))
    for changes in (
        {"all2all_backend": "allgather_reducescatter"},
        {"data_parallel_size": 1},
        {"tensor_parallel_size": 2},
        {"prefill_context_parallel_size": 2},
    ):
        assert not routes_own_tokens(config(**changes))


def test_the_best_choice_is_joint_where_a_node_is_sent_one_copy():
    assert best_choice(config(all2all_backend="deepep_high_throughput")) == "joint"
    assert best_choice(config()) == "near"
