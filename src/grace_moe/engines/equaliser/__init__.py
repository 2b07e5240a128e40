"""The slot equaliser: from any placement to one with equal slots on every device, as engines need, and to one that follows loads."""

from grace_moe.engines.equaliser.equalise import Equalised, equalise
from grace_moe.engines.equaliser.exchange import even_out, rebalance

__all__ = ["Equalised", "equalise", "even_out", "rebalance"]
