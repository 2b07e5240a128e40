"""A migration as one rank sees it: what it does at each step boundary, decided alike on all ranks by what all told at the last.

    watching -> sharing -> preparing -> moving (stage by stage) -> watching
                                \\___________\\__ rolled back: renewing -> watching

The layers of a stage switch when every rank has their arriving experts. What has not switched when a migration fails serves as before.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.distributed as dist

from grace_moe.placement import Placement
from grace_moe.runtime.dispatch.rank_groups import rank_device
from grace_moe.runtime.migration.ballot import Ballot, Told
from grace_moe.runtime.migration.mover import Mover
from grace_moe.runtime.migration.plan import MigrationPlan, migration_plan, own_choices
from grace_moe.runtime.migration.slots import SlotWeights
from grace_moe.runtime.model.session import ExpertParallelSession

WATCHING, SHARING, PREPARING, MOVING, RENEWING, STOPPED = range(6)


@dataclass(kw_only=True)
class Counts:
    """Of one rank's migrations, alike on all but where said."""

    migrations: int = 0
    rolled_back: int = 0
    layers_switched: int = 0
    copies_moved: int = 0
    gain: float = 0.0
    reason: str = ""
    error: str = ""
    switched_step: int = 0
    switched_at: float = 0.0
    """Unix seconds."""


class Migration:
    """Mutable on purpose: `step` is called before every forward pass, `boundary` before every n-th."""

    def __init__(
        self, session: ExpertParallelSession, serving: Placement, weights: dict[int, SlotWeights], mover: Mover, ballot: Ballot
    ) -> None:
        self._first, self._layers = serving, list(own_choices(serving))
        self.counts = Counts(switched_at=time.time())
        self.state = WATCHING
        self._session, self._weights, self._mover, self._ballot = session, weights, mover, ballot
        self._offer = torch.empty(0, dtype=torch.uint8)
        self._plan: MigrationPlan | None = None
        self._stage = 0
        self._renewing = False
        self.switched: list[int] = []
        """Indices of the layers of the last migration that have switched."""
        self._steps = 0

    @property
    def serving(self) -> Placement:
        """As far as layers have switched."""
        return replace(self._first, layers=tuple(self._layers), source="moved while serving")

    @property
    def idle(self) -> bool:
        """Whether another migration may be proposed."""
        return self.state == WATCHING and not len(self._offer)

    @property
    def offered_bytes(self) -> int:
        """Of the plan that waits to be shared."""
        return len(self._offer) if self.state == WATCHING else 0

    def offer(self, plan: bytes) -> None:
        """Propose a migration, on rank 0."""
        self._offer = torch.frombuffer(bytearray(plan), dtype=torch.uint8)

    def step(self, *, quiet: bool) -> None:
        """A pass comes: if it is quiet, one more part of what the mover does may be done. Alike on all ranks."""
        self._steps += 1
        if quiet and self.state in (PREPARING, MOVING):
            self._mover.grant()

    def boundary(self, told: Told) -> None:
        """Go on by what all ranks told at the last boundary."""
        failed = told.failure is not None and self.state in (PREPARING, MOVING)
        all_idle = all(vote.idle for vote in told.votes)
        if failed:
            self._roll_back()
        elif self.state == WATCHING and told.votes[0].offer:
            if dist.get_rank() != 0:
                self._offer = torch.empty(told.votes[0].offer, dtype=torch.uint8)
            self._ballot.share(self._offer)
            self.state = SHARING
        elif self.state == SHARING:
            self._prepare()
        elif self.state == PREPARING and all_idle:
            self._begin_stage(0, told)
        elif self.state == MOVING and all_idle:
            self._switch(told)
        elif self.state == RENEWING and all_idle:
            self._renew(told)

    def _prepare(self) -> None:
        """Let the mover read the plan and make the layers' routes, a layer a step: it would hold up a step that all of them fell into."""
        told, self._offer = self._offer.numpy().tobytes(), torch.empty(0, dtype=torch.uint8)
        self.state = PREPARING

        def prepare() -> None:
            routes = self._session.routes
            self._plan = migration_plan(told, self._first, routes, rank_device(), before_layer=self._mover.granted)

        self.switched = []
        self._mover.do(prepare)

    def _begin_stage(self, stage: int, told: Told) -> None:
        assert self._plan is not None
        if stage == len(self._plan.stages):
            self.counts.migrations += 1
            self._plan, self.state = None, WATCHING
            return
        self._stage, self.state = stage, MOVING
        chunk_bytes = sum(vote.chunk for vote in told.votes) // len(told.votes)
        self._mover.do(partial(self._mover.move, self._plan, self._plan.stages[stage], chunk_bytes, self._slot_of))

    def _slot_of(self, layer: int, expert: int) -> int:
        return self._session.routes[self._layers[layer].layer_id].local_experts.index(expert)

    def _switch(self, told: Told) -> None:
        """All ranks have all that the stage brings: put it into the slots, and send tokens by the new routes from this pass on."""
        assert self._plan is not None
        plan, stage = self._plan, self._plan.stages[self._stage]
        for (layer, expert), weights in self._mover.arrived.items():
            route = plan.routes[layer]
            self._weights[route.layer_id].write(route.local_experts.index(expert), weights)
        self._mover.arrived = {}
        for layer in stage.layers:
            self._session.routes[plan.routes[layer].layer_id] = plan.routes[layer]
            self._layers[layer] = plan.layers[layer]
        self.switched += stage.layers
        counts = self.counts
        counts.layers_switched += len(stage.layers)
        counts.copies_moved += sum(map(len, stage.rounds))
        counts.gain, counts.reason = plan.gain, plan.reason
        counts.switched_step, counts.switched_at = self._steps, time.time()
        self._begin_stage(self._stage + 1, told)

    def _roll_back(self) -> None:
        """Serve on as before. What was the cause is known when all movers have let go: others may have seen more of it."""
        self.counts.rolled_back += 1
        self._mover.cancel()
        self._plan, self.state = None, RENEWING

    def _renew(self, told: Told) -> None:
        """Every mover has let go: give them a new link, and watch on when all have it."""
        if not self._renewing:
            assert told.failure is not None
            self.counts.error = f"rank {told.failure.rank}: {told.failure.words}; rolled back, the old plan serves on"
            self._renewing = True
            self._mover.do(self._mover.renew)
            return
        self._renewing = False
        self.state = WATCHING
        if told.failure is not None:
            self.state = STOPPED
            self.counts.error = f"rank {told.failure.rank}: no new connection: {told.failure.words}; nothing moves any more"
