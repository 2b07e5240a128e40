"""The slot equaliser: from any placement to one with equal slots on every device, as engines need, to one that follows loads,
and to one on the devices that are left."""

from grace_moe.engines.equaliser.equalise import Equalised, equalise
from grace_moe.engines.equaliser.exchange import even_out
from grace_moe.engines.equaliser.replanning import Replanned, Window, replan, spread_evenly
from grace_moe.engines.equaliser.survivors import without_devices

__all__ = ["Equalised", "Replanned", "Window", "equalise", "even_out", "replan", "spread_evenly", "without_devices"]
