"""The draw behind every replica choice: a hash, so that the same token in the same run always goes the same way."""

from typing import Any

DRAW_BITS = 24
"""A draw is an integer below 2**DRAW_BITS."""
_MASK = 0xFFFFFFFF


def draw(seed: int, layer_id: int, tokens: Any, experts: Any) -> Any:
    """Integers in [0, 2**DRAW_BITS) for (token, expert) pairs: a 32-bit mix in 64-bit integer arithmetic.

    Args:
        tokens, experts: int64 arrays (NumPy) or tensors (torch) of one broadcast shape.
    """
    x = (tokens * 0x27D4EB2F + experts * 0x165667B1 + layer_salt(seed, layer_id)) & _MASK
    for multiplier, shift in ((0x7FEB352D, 16), (0x46C6A68B, 15)):
        x = x ^ (x >> shift)
        x = (x * multiplier) & _MASK
    return (x ^ (x >> 16)) >> (32 - DRAW_BITS)


def layer_salt(seed: int, layer_id: int) -> int:
    """What sets a layer's draws apart from another's: an integer below 2**32."""
    return (seed * 0x9E3779B1 + layer_id * 0x85EBCA77) & _MASK
