"""Slot maps: slots that stay where they were."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.engines import SlotMap, equalise
from grace_moe.engines.slot_map import keep_slots
from tests.engines.samples import placements


@given(placements(), st.randoms(use_true_random=False))
def test_kept_slots_hold_the_same_experts_on_every_rank(placed, random):
    slots = SlotMap.of(equalise(placed).placement)
    old = slots.physical_to_logical.copy()
    for row in old:
        random.shuffle(row)
    kept = keep_slots(slots.physical_to_logical, old, slots.num_ranks)
    shape = (len(kept), slots.num_ranks, -1)
    assert (np.sort(kept.reshape(shape)) == np.sort(slots.physical_to_logical.reshape(shape))).all()
    for now, before in zip(kept.reshape(-1, slots.slots_per_rank), old.reshape(-1, slots.slots_per_rank), strict=True):
        assert all(now[i] == before[i] for i in range(len(now)) if before[i] in now and list(before[:i]).count(before[i]) == 0)
    assert (keep_slots(kept, old[:, :0], slots.num_ranks) == kept).all()
