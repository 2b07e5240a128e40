"""What one copy of a token weighs on the wire: the runtime sends it, the evaluation predicts it, both read it here."""

from dataclasses import dataclass

COUNT_BYTES = 8
"""One row count (int64), told before rows of unequal number."""
SLOT_BYTES = 2
"""One chosen slot (int16) in a dispatched row."""
WEIGHT_BYTES = 4
"""One routing weight (float32) in a dispatched row."""


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
