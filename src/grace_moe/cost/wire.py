"""What one copy of a token weighs on the wire: the runtime sends it, the evaluation predicts it, both read it here."""

from dataclasses import dataclass

COUNT_BYTES = 8
"""One row count (int64), told before rows of unequal number."""
SLOT_BYTES = 2
"""One chosen slot (int16) in a dispatched row."""
WEIGHT_BYTES = 4
"""One routing weight (float32) in a dispatched row."""

DISPATCHES = ("vanilla", "flat", "hierarchical", "auto")
"""How tokens reach experts: Transformers' own pairwise all-to-all; one copy a device; one copy a node, then one a device; flat for tiny
batches and hierarchical for the rest."""

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


@dataclass(frozen=True, kw_only=True)
class WireFormat:
    """Row sizes of one model."""

    hidden_size: int
    """Elements of a hidden state."""
    itemsize: int
    """Bytes of an element."""
    top_k: int
    """Experts a token chooses."""

    @property
    def hidden_bytes(self) -> int:
        """One hidden state: a row of the combine, or a (token, expert) pair of the vanilla dispatch."""
        return self.hidden_size * self.itemsize

    @property
    def dispatch_row_bytes(self) -> int:
        """One dispatched row: hidden state, then k slots and k weights."""
        return self.hidden_bytes + self.top_k * (SLOT_BYTES + WEIGHT_BYTES)
