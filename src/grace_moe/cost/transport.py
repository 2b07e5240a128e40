"""How tokens reach experts: the ways to dispatch, when `auto` takes which, and the counts that each exchanges."""

from collections.abc import Sequence

from grace_moe.errors import UsageError

DISPATCHES = ("vanilla", "flat", "hierarchical", "auto")
"""Transformers' own pairwise all-to-all; one copy a device; one copy a node, then one a device; flat for tiny batches and hierarchical
for the rest."""

FLAT_BYTES = 32 * 1024
"""Hidden states of a rank's batch, on average over ranks, up to which `auto` goes flat: fewer collectives count for more than fewer bytes.
Where the two are even over gloo at 200 Mbit/s between nodes (benchmarks/dispatch.py)."""


def goes_flat(rows: int, num_ranks: int, num_nodes: int, hidden_bytes: int, flat_bytes: float = FLAT_BYTES) -> bool:
    """Whether `auto` sends a forward pass flat; on one node that is always the better.

    Args:
        rows: of all ranks, padding and idle rows included.
        hidden_bytes: of one hidden state.
    """
    return num_nodes == 1 or rows / num_ranks * hidden_bytes <= flat_bytes


def counts_between_nodes(dispatch: str, devices_per_node: Sequence[int], num_experts: int) -> int:
    """Row counts that go between nodes in one layer of one forward pass.

    - hierarchical and auto: from each device to each device on another node, one for each device there, one for the
      node and one of all tokens;
    - flat: one for each ordered pair of devices on different nodes;
    - vanilla: one for each such pair and each of the receiver's experts, which are split evenly.

    Raises:
        UsageError: unknown dispatch.
    """
    num_devices = sum(devices_per_node)
    far_pairs = num_devices**2 - sum(size**2 for size in devices_per_node)
    if dispatch in ("hierarchical", "auto"):
        return sum(size * (num_devices - size) * (size + 2) for size in devices_per_node)
    if dispatch == "flat":
        return far_pairs
    if dispatch == "vanilla":
        return far_pairs * (num_experts // num_devices)
    raise UsageError(f"dispatch {dispatch!r} is unknown; use one of {', '.join(DISPATCHES)}")
