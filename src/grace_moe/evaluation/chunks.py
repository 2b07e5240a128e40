"""Tokens in chunks, so that a replay's memory does not grow with the trace or the cluster."""

from __future__ import annotations

from collections.abc import Iterator

CHUNK_CELLS = 2**20
"""(token, device) cells replayed at once."""


def chunks(num_tokens: int, num_devices: int) -> Iterator[slice]:
    """Slices of consecutive tokens, at most 16,384 each."""
    chunk = min(16_384, max(1, CHUNK_CELLS // num_devices))
    return (slice(start, min(start + chunk, num_tokens)) for start in range(0, num_tokens, chunk))
