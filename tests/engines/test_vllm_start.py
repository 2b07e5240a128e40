"""Experts of a checkpoint into the slots of a plan; `make contract` does it in vLLM itself."""

import functools

import numpy as np
import pytest

from grace_moe.engines.live.live_plan import switch
from grace_moe.engines.vllm.start import STATIC_START, PlannedSlots, _skips
from grace_moe.errors import MismatchError, UsageError
from tests.engines.plans import EXPERTS, HELD, LAYERS, RANKS, SLOTS

PER_RANK = SLOTS // RANKS


def planned(rank):
    return PlannedSlots(table=np.array(HELD, dtype=np.int64), rank=rank, num_ranks=RANKS, num_experts=EXPERTS)


def vllms_loader(rank, into):
    """vLLM's, by its seam: takes a part of a slot of this rank, and says whether it did."""

    def load(param, loaded_weight, weight_name, shard_id, expert_id, return_success=False):
        if expert_id // PER_RANK != rank:
            return False if return_success else None
        into.setdefault(expert_id, {})[shard_id] = loaded_weight
        return True if return_success else None

    load.supports_moe_loading = True
    return load


def load_all(slots, rank, experts=range(EXPERTS)):
    """Every expert twice, as vLLM asks for its redundant slots too. Returns what each slot of the rank got."""
    into = {}
    load = slots.loader(vllms_loader(rank, into), 0, "w13_weight")
    assert load.supports_moe_loading
    for expert in experts:
        for slot in (expert, expert + EXPERTS):
            for shard in ("w1", "w3"):
                taken = load(None, (expert, shard), f"experts.{expert}", shard_id=shard, expert_id=slot, return_success=True)
                assert taken == (slot < EXPERTS and expert in HELD[0][PER_RANK * rank : PER_RANK * (rank + 1)])
    return into


@pytest.mark.parametrize("rank", range(RANKS))
def test_every_slot_gets_the_expert_of_the_plan(rank):
    slots = planned(rank)
    into = load_all(slots, rank)
    expected = {slot: {shard: (HELD[0][slot], shard) for shard in ("w1", "w3")} for slot in slots.own}
    assert into == expected
    assert slots.check()


def test_a_checkpoint_without_an_expert_is_refused():
    slots = planned(1)
    load_all(slots, 1, experts=[1])
    with pytest.raises(MismatchError, match=r"MoE layer 0: w13_weight: slot 3 got 0 of 2 parts of expert 2 .* GRACE_MOE_STATIC_START=0"):
        slots.check()


def test_a_model_that_loads_in_another_way_is_found_out():
    assert not planned(0).check()


def test_weights_of_others_experts_are_not_read():
    held = {layer + 1: {HELD[layer][0], HELD[layer][1]} for layer in range(LAYERS)}  # rank 0; the model's layers 1 and 2 have experts
    skips = functools.partial(_skips, lambda name, ids: name == "not.needed", held, local_expert_ids=None)
    read = [expert for expert in range(EXPERTS) if not skips(weight_name=f"model.layers.1.mlp.experts.{expert}.up_proj.weight")]
    assert read == [0, 1]
    assert [skips(weight_name=f"model.layers.2.mlp.experts.{expert}.w1.weight_packed") for expert in range(EXPERTS)] == [
        True,
        True,
        False,
        False,
    ]
    for name in (
        "model.layers.0.mlp.experts.3.up_proj.weight",  # of no layer of the plan
        "model.layers.1.mlp.experts.3.up_proj.weight_scale",  # small, and some kernels want all
        "model.layers.1.mlp.experts.gate_up_proj",  # all experts in one tensor
        "model.layers.1.mlp.gate.weight",
        "lm_head.weight",
    ):
        assert not skips(weight_name=name), name
    assert skips(weight_name="not.needed")


def test_it_can_be_switched_off(monkeypatch):
    monkeypatch.delenv(STATIC_START, raising=False)
    assert switch(STATIC_START, "1")
    for value, on in (("", True), ("1", True), ("0", False)):
        monkeypatch.setenv(STATIC_START, value)
        assert switch(STATIC_START, "1") is on
    monkeypatch.setenv(STATIC_START, "no")
    with pytest.raises(UsageError, match="GRACE_MOE_STATIC_START='no': set it to 1 or 0"):
        switch(STATIC_START, "1")
