"""Experts that are chosen together, by device."""

import numpy as np
import pytest


def test_affinity_is_ordered_by_device(content):
    affinity = content.affinity
    layer = content.trace.layer_ids.index(affinity.layer_id)
    for row, order, sizes in zip((content.before, content.after), affinity.order, affinity.sizes, strict=True):
        devices = row.placement.layers[layer].devices_of_expert
        primaries = [devices[expert][0] for expert in order]
        assert primaries == sorted(primaries)
        assert np.bincount(primaries, minlength=4).tolist() == sizes.tolist()
        assert sorted(order) == list(range(16))
    both = [{expert for expert in token if expert >= 0} for token in content.trace.topk_ids[:, layer].tolist()]
    assert affinity.counts[2, 5] == sum({2, 5} <= chosen for chosen in both)
    here = [d // 8 for d in range(16)]  # contiguous on two nodes
    together = sum(affinity.counts[a, b] for a in range(16) for b in range(16) if here[a] == here[b])
    assert affinity.together[0] == pytest.approx(together / affinity.counts.sum())
