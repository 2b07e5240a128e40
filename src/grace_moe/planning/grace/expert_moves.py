"""Single experts moved, exchanged, copied and given up, as long as the layer gets faster: what no price of the searches knows of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from grace_moe.placement import LayerPlacement
from grace_moe.planning.grace.clock import Clock, timed
from grace_moe.planning.grace.replica_shares import primary_first

Rows = list[dict[int, float]]
"""Per expert, the weight of each device that holds it."""


def improved(clock: Clock, layer: LayerPlacement, slots: Sequence[int], tries: int, seed: int) -> LayerPlacement:
    """A placement that takes no longer by this clock; the same where no move that is tried helps.

    Args:
        slots: `[D]` most experts of each device.
    """
    generator = np.random.default_rng(seed)
    rows = [dict(zip(*row, strict=True)) for row in zip(layer.devices_of_expert, layer.replica_weights, strict=True)]
    times = timed(clock, layer)
    least, carried = float(times.total.mean()), times.carried
    for _ in range(tries):
        moved = _moved(rows, carried, slots, generator)
        if moved is None:
            continue
        placed = _layer(layer, moved)
        times = timed(clock, placed)
        seconds = float(times.total.mean())
        if seconds < least:
            layer, rows, least, carried = placed, moved, seconds, times.carried
    return primary_first(layer)


def _moved(rows: Rows, carried: npt.NDArray[np.float64], slots: Sequence[int], generator: np.random.Generator) -> Rows | None:
    """The rows after a move that is drawn, half of them off the device that carries most; None where it can't be."""
    devices = len(carried)
    here = int(carried.argmax()) if generator.random() < 0.5 else int(generator.integers(devices))
    there = int(generator.integers(devices))
    held = [expert for expert, row in enumerate(rows) if here in row]
    others = [expert for expert, row in enumerate(rows) if there in row]
    if here == there or not held:
        return None
    expert = held[int(generator.integers(len(held)))]
    kind = int(generator.integers(4))
    row = dict(rows[expert])
    changed = list(rows)
    changed[expert] = row
    if kind == 0:  # less of it is computed here, or nothing
        if len(row) == 1:
            return None
        row[here] *= (0.0, 0.5)[int(generator.integers(2))]
        if not row[here]:
            del row[here]
        return changed
    if there in row:
        return None
    share = row[here]
    if kind == 1:  # another copy, for half of it
        row[here] = row[there] = share / 2
        return changed if len(others) < slots[there] else None
    del row[here]
    row[there] = share
    if kind == 2:
        return changed if len(others) < slots[there] else None
    back = others[int(generator.integers(len(others)))] if others else expert
    if here in rows[back] or back == expert:
        return None
    changed[back] = {(here if device == there else device): weight for device, weight in rows[back].items()}
    return changed


def _layer(layer: LayerPlacement, rows: Rows) -> LayerPlacement:
    return replace(
        layer,
        devices_of_expert=tuple(tuple(row) for row in rows),
        replica_weights=tuple(tuple(weight / sum(row.values()) for weight in row.values()) for row in rows),
    )
