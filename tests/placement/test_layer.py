"""The placement of one layer."""

from tests.placement.samples import HAND


def test_a_layer_in_decode_by_hand():
    """Decode uses expert 1 on device 3 alone, and expert 3 on devices 2 and 1; layer 1 sees no difference."""
    layer = HAND.layers[0].in_decode()
    assert layer.devices_of_expert == ((0,), (3,), (2,), (2, 1))
    assert layer.replica_weights == ((1.0,), (1.0,), (1.0,), (0.25, 0.75))
    assert layer.decode_weights == ()
    assert (layer.layer_id, layer.node_prices) == (HAND.layers[0].layer_id, HAND.layers[0].node_prices)
    assert HAND.layers[1].in_decode() is HAND.layers[1]
