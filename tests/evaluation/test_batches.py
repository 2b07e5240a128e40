"""How even batches are."""

import numpy as np
import pytest

from grace_moe.evaluation.batches import batch_balance


def test_balance_by_hand():
    """Two devices, the second twice as fast. Batch 0: loads 2 and 1 / 2, batch 2: loads 0 and 1; batch 1 has none."""
    devices, batches = np.array([[0, 0], [1, -1], [-1, -1], [1, 1]]), np.array([0, 0, 1, 2])
    assert batch_balance(devices, batches, np.array([1.0, 2.0])) == pytest.approx((2 / 1.25 + 1 / 0.5) / 2)
    assert batch_balance(devices[:0], batches[:0], np.ones(2)) == 0
