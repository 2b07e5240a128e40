"""The counts that each dispatch exchanges, and when `auto` goes flat."""

import pytest

from grace_moe.cost.transport import DISPATCHES, counts_between_nodes, goes_flat
from grace_moe.errors import UsageError


@pytest.mark.parametrize(
    ("dispatch", "counts"),
    [
        ("hierarchical", 4 * 2 * 4),  # each device to two on the other node: of each of the 2 there, of the node, of all tokens
        ("auto", 4 * 2 * 4),
        ("flat", 4 * 2),
        ("vanilla", 4 * 2 * 4),  # of each of a peer's 16 / 4 experts
    ],
)
def test_counts_between_two_nodes_of_two(dispatch, counts):
    assert counts_between_nodes(dispatch, (2, 2), 16) == counts


def test_unequal_nodes_have_fewer_far_pairs():
    """Nodes of 3 and 1: 6 ordered pairs on different nodes; 5 counts to each of 3 devices there, 3 to the one."""
    assert counts_between_nodes("flat", (3, 1), 16) == 6
    assert counts_between_nodes("hierarchical", (3, 1), 16) == 3 * 5 + 3 * 3


def test_one_node_has_no_other_to_tell():
    assert [counts_between_nodes(dispatch, (4,), 16) for dispatch in DISPATCHES] == [0] * 4


def test_an_unknown_dispatch():
    with pytest.raises(UsageError, match="dispatch 'ring' is unknown; use one of vanilla, flat, hierarchical, auto"):
        counts_between_nodes("ring", (2, 2), 16)


def test_auto_goes_flat_up_to_32_kib_a_rank_and_always_on_one_node():
    """128 bytes a row: 1,024 rows over four ranks are 32 KiB each."""
    assert goes_flat(1024, 4, 2, 128)
    assert not goes_flat(1025, 4, 2, 128)
    assert goes_flat(1025, 4, 1, 128)
