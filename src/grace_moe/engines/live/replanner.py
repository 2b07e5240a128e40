"""Re-planning window after window, from the map that an engine serves: by what its routers chose where that is seen, else by loads."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from grace_moe.engines.equaliser import Replanned, Window, replan, spread_evenly
from grace_moe.engines.live.given_maps import GivenMaps
from grace_moe.engines.live.window_adapter import SeenChoices, WindowPolicy
from grace_moe.placement import LayerPlacement, Placement

Loads: TypeAlias = npt.NDArray[np.int64]
Rows: TypeAlias = npt.NDArray[np.integer[Any]]

BUDGET_SHARE = 0.1
"""Of all slots, the most that a re-planning changes: as `adapt` has it."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of a window, over all ranks."""

    by_slot: Loads
    """`[layers, slots]` pairs that each slot computed."""
    seen: SeenChoices | None = None
    """What routers chose; None = the engine doesn't show it."""


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What an engine serves, and what it measured."""

    loads: Loads
    """`[layers, experts]` pairs of the window that ends now."""
    rows: Rows | None = None
    """`[layers, slots]` expert of each slot; None = what the engine was given last."""
    measured: Measured | None = None
    """What else is known of the window."""


class Decides(Protocol):
    """What decides by choices, window after window: `WindowPolicy`, wherever it runs."""

    def next(self, serving: Placement, seen: SeenChoices, most_moves: int) -> Replanned:
        """See `WindowPolicy`."""
        ...


@dataclass
class Replanner:
    """One engine's re-planning. Every rank has the same loads, and comes to the same map."""

    most_moves: int | None = None
    """Slots that change their expert at a re-planning, all layers together; None = `BUDGET_SHARE` of all slots."""
    policy: Decides = field(default_factory=WindowPolicy, repr=False)
    """What decides by choices."""
    _before: tuple[tuple[LayerPlacement, ...], npt.NDArray[np.float64]] | None = field(default=None, repr=False)
    """The layers of the last window, and what their replicas computed."""

    def next(self, planned: Placement, given: GivenMaps, serving: Serving) -> Replanned:
        """The map after this window: the one that serves, changed where two windows say surely that it pays. Layers that serve none that
        was given (before the plan is in place) get the plan's."""
        layers, known = _layers(planned, given, serving.rows)
        now = replace(planned, layers=layers)
        if not serving.loads.any():  # nothing was measured
            return Replanned(placement=now, moved=0)
        seen = None if serving.measured is None else serving.measured.seen
        if seen is not None:
            decides = known.all() and len(seen.topk_ids) > 0
            return self.policy.next(now, seen, self._most_moves(now)) if decides else Replanned(placement=now, moved=0)
        pairs = _pairs(now, serving) * known[:, None, None]
        before, self._before = self._before, (layers, pairs)
        if before is None or before[1].shape != pairs.shape:
            return Replanned(placement=now, moved=0)
        same = [old.devices_of_expert == new.devices_of_expert for old, new in zip(before[0], layers, strict=True)]
        most = self._most_moves(now)
        return replan(Window(serving=now, loads=pairs, before=before[1] * np.array(same)[:, None, None], most_moves=most))

    def _most_moves(self, now: Placement) -> int:
        return int(BUDGET_SHARE * now.slots_per_device().sum()) if self.most_moves is None else self.most_moves


def _layers(planned: Placement, given: GivenMaps, rows: Rows | None) -> tuple[tuple[LayerPlacement, ...], npt.NDArray[np.bool_]]:
    """The layers that serve, and which of them are known."""
    if rows is None:
        latest = given.like(planned)
        return (planned if latest is None else latest).layers, np.full(len(planned.layers), latest is not None)
    found = [given.layer(index, row) for index, row in enumerate(rows)]
    layers = tuple(ours if layer is None else layer for layer, ours in zip(found, planned.layers, strict=True))
    return layers, np.array([layer is not None for layer in found])


def _pairs(now: Placement, serving: Serving) -> npt.NDArray[np.float64]:
    """`[layers, experts, devices]` pairs that each replica computed."""
    if serving.rows is None or serving.measured is None:
        return spread_evenly(now, serving.loads)
    devices, slots = now.topology.num_devices, serving.rows.shape[1]
    pairs = np.zeros((*serving.loads.shape, devices))
    layer = np.arange(len(pairs))[:, None]
    np.add.at(pairs, (layer, serving.rows, (np.arange(slots) // (slots // devices))[None]), serving.measured.by_slot)
    return pairs
