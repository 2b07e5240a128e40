"""Expert compute: a roofline for each active expert."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_moe.cost.compute import ExpertKernel, device_seconds, expert_seconds, tiled
from grace_moe.cost.sizes import ModelSizes

MODEL = ModelSizes(num_experts=4, top_k=1, hidden_size=10, expert_size=10, num_matrices=3)
"""600 bytes of weights an expert, 600 FLOPs a pair."""
KERNEL = ExpertKernel(phase="decode", launch_s=1.0, floor_s=3.0, byte_s=0.01, flop_s=0.001)
"""6 s to read an expert, 0.6 s to compute a pair: even at ten pairs."""


def test_by_hand():
    """Twenty pairs: 12 s of computing. Five: 6 s of reading. None: nothing."""
    got = expert_seconds(KERNEL, MODEL, np.array([20.0, 5.0, 0.0]))
    assert got[:2] == pytest.approx([12.0, 6.0], rel=0.01)  # five are none in 0.7% of batches
    assert got[2] == 0


def test_fewer_than_one_pair_is_active_now_and_then():
    assert expert_seconds(KERNEL, MODEL, np.array([0.01]))[0] == pytest.approx(0.01 * 6, rel=0.01)


@given(few=st.floats(0, 50), more=st.floats(0, 50))
def test_more_pairs_never_take_less(few, more):
    less, longer = expert_seconds(KERNEL, MODEL, np.array([few, few + more]))
    assert longer >= less - 1e-12


@given(pairs=st.floats(0.01, 1000), tile=st.integers(1, 256))
def test_tiles_are_whole(pairs, tile):
    rows = tiled(np.array([pairs, 0.0]), tile)
    assert rows[0] >= max(pairs, tile if tile > 1 else 0)
    assert rows[1] == 0


def test_a_device_launches_once_and_not_at_all_without_pairs():
    got = device_seconds(KERNEL, np.array([0.5, 12.0, 0.0]), np.array([True, True, False]))
    assert got.tolist() == [3.0, 13.0, 0.0]
