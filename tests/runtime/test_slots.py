"""Slots after a switch, checksums, and what ranks sample: without ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from grace_moe.errors import MismatchError, VerificationError
from grace_moe.runtime.dispatch.route import layer_routes
from grace_moe.runtime.migration.mover import checked, with_checksum
from grace_moe.runtime.migration.plan import migration_plan, proposal
from grace_moe.runtime.migration.slots import arranged, slots_of
from grace_moe.runtime.model.choice_sampler import ChoiceSampler
from grace_moe.runtime.model.step import Step

from .migrating import random_placement

CPU = torch.device("cpu")


@settings(max_examples=10)
@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_an_expert_that_stays_keeps_its_slot(first, second):
    old, new = random_placement(first), random_placement(second)
    routes = layer_routes(old, 1, seed=0, device=CPU, equal_slots=True)
    for index, layer in enumerate(old.layers):
        held, wanted = slots_of(routes[layer.layer_id]), new.experts_of_device(index)
        after = arranged(held, wanted)
        for device, (before, then) in enumerate(zip(held, after, strict=True)):
            assert sorted(expert for expert in then if expert >= 0) == list(wanted[device])
            assert all(b == t for b, t in zip(before, then, strict=True) if b in wanted[device])


def test_slots_by_hand():
    held = ((4, 1, 7), (0, -1, -1))
    assert arranged(held, [(1, 2, 3), (0, 5)]) == ((2, 1, 3), (0, 5, -1))
    with pytest.raises(MismatchError, match="device 1: 4 experts for 3 slots"):
        arranged(held, [(1,), (0, 1, 2, 3)])


@settings(max_examples=10)
@given(st.integers(0, 1000), st.integers(0, 1000))
def test_all_ranks_plan_the_same_migration(first, second):
    """And go from one placement to the other by it, each expert from a rank that has it."""
    old, new = random_placement(first), random_placement(second)
    told = proposal(new, old, reason="", gain=0.0)
    asked = []

    def plan_of(rank):
        routes = layer_routes(old, rank, seed=0, device=CPU, equal_slots=True)
        return migration_plan(told, old, routes, CPU, before_layer=asked.append)

    plans = [plan_of(rank) for rank in range(4)]
    assert asked == [*range(len(plans[0].layers))] * 4
    for plan in plans:
        assert plan.stages == plans[0].stages
        for index, route in plan.routes.items():
            assert torch.equal(route.slot_of_DE, plans[0].routes[index].slot_of_DE)
    reached = [plans[0].layers.get(index, layer) for index, layer in enumerate(old.layers)]
    assert [layer.devices_of_expert for layer in reached] == [layer.devices_of_expert for layer in new.layers]
    for stage in plans[0].stages:
        for moves in stage.rounds:
            assert all(move.source in old.layers[move.layer].devices_of_expert[move.expert] for move in moves)


@given(st.binary(min_size=1, max_size=400), st.data())
def test_a_flipped_bit_is_told(weights, data):
    parcel = with_checksum(torch.frombuffer(bytearray(weights), dtype=torch.uint8))
    assert checked(parcel).numpy().tobytes() == weights
    parcel[data.draw(st.integers(0, len(weights) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(VerificationError, match="checksum differs"):
        checked(parcel)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6))
def test_what_ranks_sample_is_what_they_saw(tokens_of_steps):
    """Tokens of two ranks: choices that tell rank, step and row."""
    samplers = [ChoiceSampler((3, 7), 2, steps=3, most=4, rank=rank, ranks=2, seed=0, device=CPU) for rank in range(2)]
    memory = [sampler.memory_bytes for sampler in samplers]
    for number, counts in enumerate(tokens_of_steps):
        for rank, (sampler, count) in enumerate(zip(samplers, counts, strict=True)):
            rows = torch.arange(count + 2)  # two rows are no tokens
            sampler.begin_step(Step(phase=1, valid=rows < count, request_ids=rows, token_ids=rows))
            for layer_id in (3, 7):
                sampler.seen(layer_id, (100 * layer_id + 10 * rank + rows)[:, None].expand(-1, 2) + 1000 * number)
    assert [sampler.memory_bytes for sampler in samplers] == memory
    last = range(len(tokens_of_steps))[-3:]
    steps = samplers[0].unpacked([sampler.packed() for sampler in samplers])
    assert sorted(step.tokens for step in steps) == sorted(sum(tokens_of_steps[n]) for n in last if sum(tokens_of_steps[n]))
    for step in steps:
        request, rank = np.divmod(step.request_ids, 2)
        assert (np.unique(step.request_ids, return_counts=True)[1] == 1).all()
        assert (step.topk_ids[:, 0, 0] % 1000 == 300 + 10 * rank + request).all()
        assert (step.topk_ids[:, 1] - step.topk_ids[:, 0] == 400).all()
