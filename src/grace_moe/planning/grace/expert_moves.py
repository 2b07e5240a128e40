"""Single experts moved, exchanged, copied and given up, as long as the layer gets faster: what no price of the searches knows of.

The layer's time itself decides, with every pair of links, speed and weight that is read. Where no move helps any more, a few moves
that don't help are made on the fastest placement so far, and the search goes on from there: an iterated local search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from grace_moe.placement import MAX_NODE_PRICE, REPLICA_CHOICES, LayerPlacement
from grace_moe.planning.constants import CHOICE_MOVES, DRAWS_A_TRY, MOVE_PATIENCE, MOVES_ASTRAY, OVER_LIMIT
from grace_moe.planning.grace.clock import Clock, chosen_again, chosen_by, expected, timed
from grace_moe.planning.grace.replica_shares import primary_first
from grace_moe.planning.grace.slots_by_memory import Rows, rows_of, with_rows


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A placement in the search. T tokens, D devices."""

    layer: LayerPlacement
    rows: Rows
    chosen: npt.NDArray[np.int64]
    """`[T, k]` device that computes each pair."""
    seconds: float
    """What the search makes small: of the layer, and of the busiest device beyond what it may take."""
    carried: npt.NDArray[np.float64]
    """`[D]` seconds of each device (`clock.Times`)."""


@dataclass(frozen=True, kw_only=True)
class Move:
    """What a placement becomes."""

    rows: Rows
    changed: tuple[int, ...] = ()
    """Experts whose rows change; none where it is how replicas are chosen."""
    layer: LayerPlacement | None = None
    """With another choice of replicas; None = as it is."""


@dataclass(frozen=True, kw_only=True)
class MoveLimits:
    """What moves may make of a placement."""

    slots: Sequence[int]
    """`[D]` most experts of each device."""
    busiest: float
    """Seconds that the busiest device may compute; beyond it each costs `OVER_LIMIT` of the layer's."""


def improved(clock: Clock, layer: LayerPlacement, limits: MoveLimits, tries: int, seed: Sequence[int]) -> LayerPlacement:
    """A placement that takes no longer by this clock, within the limits; the same where no move that is tried helps.

    Args:
        tries: placements that are timed. What was timed before is not timed again: of a small layer the search sees nearly all.
    """
    generator, slots = np.random.default_rng(list(seed)), limits.slots
    node = clock.topology.node_of_device
    rows = rows_of(layer)
    now = best = _timed(clock, layer, rows, chosen_by(clock, layer), limits)
    known = {layer: now.seconds}
    patience, failed, astray = MOVE_PATIENCE * len(rows) * len(slots), 0, 0
    for _ in range(DRAWS_A_TRY * tries):
        if len(known) > tries:
            break
        if failed >= patience:
            now, failed, astray = best, 0, MOVES_ASTRAY
        failed += 1
        chosen_otherwise = generator.random() < CHOICE_MOVES
        move = _other_choice(now, node, generator) if chosen_otherwise else _move(now, slots, generator)
        if move is None:
            continue
        moved = with_rows(move.layer or now.layer, move.rows)
        if not astray and known.get(moved, 0.0) >= now.seconds:
            continue
        after = _timed(clock, moved, move.rows, chosen_again(clock, moved, now.chosen, move.changed), limits)
        known[moved] = after.seconds
        if after.seconds < now.seconds or astray:
            now, failed, astray = after, 0, max(0, astray - 1)
        if after.seconds < best.seconds:
            best = after
    return primary_first(best.layer)


def _timed(clock: Clock, layer: LayerPlacement, rows: Rows, chosen: npt.NDArray[np.int64], limits: MoveLimits) -> Timed:
    times = timed(clock, layer, chosen)
    over = max(0.0, expected(clock, times.busiest) - limits.busiest)
    seconds = expected(clock, times.total) + OVER_LIMIT * over
    return Timed(layer=layer, rows=rows, chosen=chosen, seconds=seconds, carried=times.carried)


def _move(now: Timed, slots: Sequence[int], generator: np.random.Generator) -> Move | None:
    """A move that is drawn, half of them off the device that carries most; None where it can't be."""
    rows, devices = now.rows, len(slots)
    here = int(now.carried.argmax()) if generator.random() < 0.5 else int(generator.integers(devices))
    there = int(generator.integers(devices))
    held = [expert for expert, row in enumerate(rows) if here in row]
    others = [expert for expert, row in enumerate(rows) if there in row]
    if here == there or not held:
        return None
    expert = held[int(generator.integers(len(held)))]
    row, room = dict(rows[expert]), len(others) < slots[there]
    kind = int(generator.integers(5))
    missing = [other for other, of_other in enumerate(rows) if here not in of_other]
    if (kind in (0, 4) and len(row) == 1) or (kind in (1, 2) and (there in row or not room)) or (kind == 4 and not missing):
        kind = 3
    if kind == 4:  # given up for a copy of another expert, for half of that
        del row[here]
        other = missing[int(generator.integers(len(missing)))]
        return _with(rows, {expert: row, other: _copied(rows[other], here)})
    if kind == 0:  # less of it is computed here, or nothing
        row[here] *= (0.0, 0.5)[int(generator.integers(2))]
        if not row[here]:
            del row[here]
        return _with(rows, {expert: row})
    if kind == 1:  # another copy, for half of it
        row[here] = row[there] = row[here] / 2
        return _with(rows, {expert: row})
    share = row.pop(here)
    row[there] = share
    if kind == 2:
        return _with(rows, {expert: row})
    back = [other for other in others if here not in rows[other]]
    if there in rows[expert] or not back:
        return None
    other = back[int(generator.integers(len(back)))]
    return _with(rows, {expert: row, other: {(here if d == there else d): weight for d, weight in rows[other].items()}})


def _other_choice(now: Timed, node: npt.NDArray[np.int64], generator: np.random.Generator) -> Move | None:
    """Replicas chosen by another policy, or another price of a node: which of two equally small sets of nodes a token goes to in joint
    choice. None where no expert has replicas."""
    nodes = int(node.max()) + 1
    if all(len(row) == 1 for row in now.rows):
        return None
    if nodes < 3 or generator.random() < 0.2:
        return Move(rows=now.rows, layer=replace(now.layer, replica_choice=REPLICA_CHOICES[int(generator.integers(len(REPLICA_CHOICES)))]))
    if now.layer.replica_choice not in ("", "joint"):
        return None
    prices = np.array(now.layer.node_prices or (0.0,) * nodes)
    prices[int(generator.integers(nodes))] += (-1.0, -0.25, 0.25, 1.0)[int(generator.integers(4))]
    prices = np.clip(prices - prices.min(), 0, MAX_NODE_PRICE)
    return Move(rows=now.rows, layer=replace(now.layer, node_prices=tuple(prices.tolist()) if prices.any() else ()))


def _copied(row: dict[int, float], device: int) -> dict[int, float]:
    """The weights with a replica on this device, for half of the expert's tokens."""
    return {**row, device: sum(row.values())}


def _with(rows: Rows, changed: dict[int, dict[int, float]]) -> Move:
    return Move(rows=[changed.get(expert, row) for expert, row in enumerate(rows)], changed=tuple(changed))
