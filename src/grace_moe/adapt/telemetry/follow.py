"""Follow an adapter whose moves something else carries out: the status of it, and log lines of its decisions and their effects."""

from __future__ import annotations

import time
from collections.abc import Callable

from grace_moe.adapt.adapter import Adapter
from grace_moe.adapt.effects import effects_of
from grace_moe.adapt.episodes import BaseAdapter
from grace_moe.adapt.status import AdaptStatus
from grace_moe.adapt.telemetry.decision_log import decision_line, effect_line
from grace_moe.adapt.telemetry.traffic_view import TrafficView, traffic_view
from grace_moe.placement import Placement, difference


class Follower:
    """Counts what the adapter decides and what then serves, step by step.

    Moves are counted as they show: where layers of what serves have changed. A migration is whole when all layers are where the last
    decision sends them. It was rolled back where a later decision sends layers elsewhere that had not switched.
    """

    def __init__(
        self,
        adapter: BaseAdapter,
        *,
        expert_bytes: int,
        log: Callable[[str], None] = lambda line: None,
        view_every: int = 10,
    ) -> None:
        """`expert_bytes`: of one expert of one layer. `view_every`: steps between two views of traffic; 0 = none. There
        are none where loads alone are seen."""
        self._adapter, self._expert_bytes, self._log, self._view_every = adapter, expert_bytes, log, view_every
        self._served, self._target = adapter.serving, adapter.serving
        self._logged = self._changed_at = self._switched = self._copies = self._migrations = self._given_up = 0
        self._since = time.time()
        self._moving = self._stopped = False
        self._measured: dict[int, float] = {}
        """Place of a look -> the effect that the log has of it."""
        self.view: TrafficView | None = None

    def step(self) -> None:
        """After each step and what it moved."""
        adapter = self._adapter
        self._count_switched()
        for look in adapter.looks[self._logged :]:
            self._log(decision_line(look))
            if look.decision.placement is not None:
                self._send(look.decision.placement)
        self._logged = len(adapter.looks)
        self._end_if_whole()
        self._log_effects()
        if self._view_every and adapter.monitor.step % self._view_every == 0 and isinstance(adapter, Adapter):
            self.view = traffic_view(adapter)

    def stop(self) -> None:
        """Nothing decides any more."""
        self._stopped = True

    def status(self) -> AdaptStatus:
        """As of the last step."""
        looks, step = self._adapter.looks[: self._logged], self._adapter.monitor.step
        moves = sum(look.decision.placement is not None for look in looks)
        effects = effects_of(looks)
        return AdaptStatus(
            state="stopped" if self._stopped else "moving" if self._moving else "watching",
            alive=not self._stopped,
            steps=step,
            seen_steps=step,
            plan_age_steps=step - self._changed_at,
            plan_since=self._since,
            decisions=len(looks),
            skipped=len(looks) - moves,
            migrations=self._migrations,
            rolled_back=self._given_up,
            layers_switched=self._switched,
            copies_moved=self._copies,
            bytes_moved=self._copies * self._expert_bytes,
            expected_gain=effects.expected,
            measured_gain=effects.measured,
            useless=effects.useless,
            last_reason=looks[-1].decision.reason if looks else "",
            last_error="",
        )

    def _send(self, placement: Placement) -> None:
        """Another target; what is under way goes on where it keeps its own."""
        self._end_if_whole()
        layers = zip(self._served.layers, self._target.layers, placement.layers, strict=True)
        self._given_up += self._moving and any(old not in (serving, new) for serving, old, new in layers)
        self._target, self._moving = placement, True

    def _end_if_whole(self) -> None:
        if self._moving and self._served.layers == self._target.layers:
            self._migrations += 1
            self._moving = False

    def _log_effects(self) -> None:
        for place, look in enumerate(self._adapter.looks):
            if look.measured is not None and look.measured != self._measured.get(place):
                self._measured[place] = look.measured
                self._log(effect_line(look, self._adapter.monitor.step))

    def _count_switched(self) -> None:
        serving = self._adapter.serving
        if serving is self._served:
            return
        changed = sum(new != old for new, old in zip(serving.layers, self._served.layers, strict=True))
        self._copies += difference(serving, self._served).moved
        self._served = serving
        if changed:
            self._switched += changed
            self._changed_at, self._since = self._adapter.monitor.step, time.time()
