from functools import partial

import numpy as np
import pytest

from grace_moe.errors import UsageError
from grace_moe.planning.paper import knee
from grace_moe.planning.paper.grouping import DEVICES_CUT, NODES_CUT, NODES_FILLED, flat_draft, hierarchical_draft
from grace_moe.planning.paper.knee import knee_ratio, utilisation_curve
from grace_moe.planning.paper.sizes import controlled_sizes, free_sizes, uniform_sizes
from grace_moe.topology import Device, Link, Node, Topology

LINK = Link(bandwidth_bytes_per_s=1e9, latency_s=1e-6)


def nested(node_of_expert, device_of_expert) -> np.ndarray:
    """Affinity 50 on a device, 10 on a node, 1 elsewhere."""
    node, device = np.asarray(node_of_expert), np.asarray(device_of_expert)
    same_node, same_device = node[:, None] == node[None, :], device[:, None] == device[None, :]
    affinity = np.where(same_device, 50, np.where(same_node, 10, 1))
    np.fill_diagonal(affinity, 0)
    return affinity.astype(np.int64)


def unequal(*counts: int) -> Topology:
    nodes = tuple(Node(name=f"n{i}", devices=tuple(Device(name=f"d{j}") for j in range(c))) for i, c in enumerate(counts))
    return Topology(nodes=nodes, intra_node=LINK, cross_node=LINK)


# 16 experts: node a has devices {0..4}, {5, 6, 7}, node b has {8..11}, {12..15}.
DEVICE = [0] * 5 + [1] * 3 + [2] * 4 + [3] * 4
AFFINITY = nested([0] * 8 + [1] * 8, DEVICE)


def test_hierarchical_finds_nodes_then_devices():
    draft = hierarchical_draft(AFFINITY, Topology.regular(2, 2), [16] * 4, seed=0)
    grouping = draft.hold(partial(controlled_sizes, ratio=0.15))
    assert {frozenset(group) for group in grouping.groups} == {
        frozenset(range(5)),
        frozenset({5, 6, 7}),
        frozenset(range(8, 12)),
        frozenset(range(12, 16)),
    }
    nodes = [set(grouping.groups[0] + grouping.groups[1]), set(grouping.groups[2] + grouping.groups[3])]
    assert set(range(8)) in nodes
    assert grouping.notes == ()
    # Sizes 5, 3, 4, 4 around E = 4: sqrt((1 + 1) / 4).
    assert grouping.deviation == 0.5**0.5
    inside = 50 * (5 * 4 + 3 * 2 + 2 * 4 * 3)
    assert grouping.utilisation == inside / AFFINITY.sum()


def test_sizes_are_controlled_inside_each_node_around_its_own_mean():
    # Node groups of 12 and 4 experts: E = 6 and 2, d = 1.
    affinity = nested([0] * 12 + [1] * 4, [0] * 10 + [1] * 2 + [2] * 3 + [3])
    grouping = hierarchical_draft(affinity, Topology.regular(2, 2), [16] * 4, seed=0).hold(partial(controlled_sizes, ratio=0.15))
    sizes = [len(group) for group in grouping.groups]
    assert sorted([sorted(sizes[:2]), sorted(sizes[2:])]) == [[1, 3], [5, 7]]
    free = hierarchical_draft(affinity, Topology.regular(2, 2), [16] * 4, seed=0).hold(free_sizes)
    assert sorted(len(group) for group in free.groups) == [1, 2, 3, 10]


def test_slot_limit_is_respected_at_both_levels_and_reported():
    affinity = nested([0] * 12 + [1] * 4, [0] * 10 + [1] * 2 + [2] * 3 + [3])
    grouping = hierarchical_draft(affinity, Topology.regular(2, 2), [5] * 4, seed=0).hold(free_sizes)
    sizes = [len(group) for group in grouping.groups]
    assert sum(sizes) == 16
    assert max(sizes) <= 5
    assert NODES_CUT in grouping.notes
    # Node groups of 8 fit as they are; the cluster of 5 does not.
    grouping = hierarchical_draft(AFFINITY, Topology.regular(2, 2), [4] * 4, seed=0).hold(free_sizes)
    assert [len(group) for group in grouping.groups] == [4] * 4
    assert grouping.notes == (DEVICES_CUT,)


def test_slot_limit_that_changes_nothing_is_not_reported():
    grouping = hierarchical_draft(AFFINITY, Topology.regular(2, 2), [6] * 4, seed=0).hold(partial(controlled_sizes, ratio=0.15))
    assert grouping.notes == ()


def test_limits_may_differ_by_device():
    grouping = flat_draft(AFFINITY, [1, 2, 5, 16], seed=0).hold(uniform_sizes)
    sizes = [len(group) for group in grouping.groups]
    assert all(size <= limit for size, limit in zip(sizes, [1, 2, 5, 16], strict=True))
    assert grouping.notes == (DEVICES_CUT,)


def test_node_with_more_devices_gets_the_larger_node_group():
    affinity = nested([0] * 3 + [1] * 9, [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3)
    for counts, sizes in (((1, 3), [3, 3, 3, 3]), ((3, 1), [3, 3, 3, 3])):
        draft = hierarchical_draft(affinity, unequal(*counts), [12] * 4, seed=0)
        assert [len(part.experts) for part in draft.parts] == [3 * count for count in counts]
        assert [len(group) for group in draft.hold(uniform_sizes).groups] == sizes


def test_node_group_smaller_than_its_devices_takes_more():
    # Cluster {0} alone, the other 7 together; each node has 3 devices to fill.
    affinity = nested([0] + [1] * 7, [0] + [1] * 7)
    grouping = hierarchical_draft(affinity, Topology.regular(2, 3), [8] * 6, seed=0).hold(free_sizes)
    assert all(grouping.groups)
    assert NODES_FILLED in grouping.notes


def test_flat_uniform_sizes_differ_by_at_most_one():
    sizes = [len(group) for group in flat_draft(AFFINITY[:14, :14], [14] * 4, seed=0).hold(uniform_sizes).groups]
    assert sorted(sizes) == [3, 3, 4, 4]


def test_fewer_experts_than_devices_is_an_error():
    few = AFFINITY[:3, :3]
    with pytest.raises(UsageError, match=r"3 experts on 4 devices.*use fewer devices"):
        flat_draft(few, [3] * 4, seed=0)
    with pytest.raises(UsageError, match=r"3 experts on 4 devices.*use fewer devices"):
        hierarchical_draft(few, Topology.regular(2, 2), [3] * 4, seed=0)


def test_curve_starts_near_uniform_and_ends_fully_non_uniform():
    affinity = nested([0] * 16, [0] * 10 + [1] * 2 + [2] * 2 + [3] * 2)
    draft = flat_draft(affinity, [16] * 4, seed=0)
    deviations, utilisations = utilisation_curve([draft])
    assert utilisations == sorted(utilisations)
    assert utilisations[0] < utilisations[-1]
    assert deviations[0] <= 1  # r = 0.05 has d = 1
    # r = 1 has E + d = 8: still short of the cluster of 10.
    assert deviations[-1] < draft.hold(free_sizes).deviation


def test_knee_of_a_curve_that_bends(monkeypatch):
    # Steep to S = 2 (r = 0.10), flat after.
    curve = [float(s) for s in range(1, 21)], [0.2, 0.6] + [0.6 + 0.005 * s for s in range(1, 19)]
    monkeypatch.setattr(knee, "utilisation_curve", lambda drafts: curve)
    assert knee_ratio([]) == 0.10


@pytest.mark.parametrize(
    "curve",
    [
        ([float(s) for s in range(20)], [0.1 * s for s in range(20)]),  # a straight line
        ([0.0] * 20, [0.5] * 20),  # one point
        ([float(s) for s in range(20)], [0.5] * 20),  # flat
    ],
    ids=["straight", "point", "flat"],
)
def test_no_knee(monkeypatch, curve):
    monkeypatch.setattr(knee, "utilisation_curve", lambda drafts: curve)
    assert knee_ratio([]) is None


def test_the_knee_is_where_the_dense_group_is_whole():
    """Groups of 10, 12, 5 and 5 of 32 experts, E = 8. The 10 have most of the affinity and need d = 2; from there on U gains little."""
    device = np.repeat(range(4), (10, 12, 5, 5))
    affinity = np.where(device[:, None] == device, np.array([100, 5, 50, 50])[device], 1).astype(np.int64)
    np.fill_diagonal(affinity, 0)
    assert knee_ratio([flat_draft(affinity, [32] * 4, seed=0)]) == 0.2  # the least that rounds 8 r to 2


def test_a_curve_of_one_point_has_no_knee():
    """Sizes 5, 3, 4 and 4 are within d = 1, the least that any ratio gives."""
    draft = flat_draft(AFFINITY, [16] * 4, seed=0)
    assert len(set(utilisation_curve([draft])[0])) == 1
    assert knee_ratio([draft]) is None
