"""Row sizes."""

from grace_moe.cost.wire import WireFormat


def test_a_row_on_the_wire():
    """32 floats, and four slots of 2 bytes and weights of 4."""
    wire = WireFormat(hidden_size=32, itemsize=4, top_k=4)
    assert (wire.hidden_bytes, wire.dispatch_row_bytes) == (128, 152)
