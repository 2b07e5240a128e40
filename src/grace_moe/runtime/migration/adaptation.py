"""The door: a loaded model whose experts follow the traffic."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from grace_moe.adapt import AdaptOptions, AdaptStatus, DecisionOptions, Prices
from grace_moe.errors import MismatchError, UsageError
from grace_moe.placement import Placement
from grace_moe.runtime.dispatch.rank_groups import rank_device
from grace_moe.runtime.migration.ballot import Ballot, Told, Vote
from grace_moe.runtime.migration.decider import Answer, Decides, DecidingProcess
from grace_moe.runtime.migration.link import Link
from grace_moe.runtime.migration.migration import STOPPED, WATCHING, Migration
from grace_moe.runtime.migration.mover import Mover
from grace_moe.runtime.migration.slots import slot_weights
from grace_moe.runtime.model.choice_sampler import ChoiceSampler
from grace_moe.runtime.model.loading import LoadedModel
from grace_moe.runtime.model.session import ExpertParallelSession
from grace_moe.runtime.model.step import Step
from grace_moe.trace import RoutingTrace

if TYPE_CHECKING:
    from grace_moe.adapt.telemetry import TrafficView

LEAST_CHUNK = 2**12
"""Bytes; below it, a chunk costs its way and not its size. Not tuned."""
SHARE = 0.1
"""Of what dispatch sends between nodes in a step, what moves may add to it. Not tuned."""


@dataclass(frozen=True, kw_only=True)
class AdaptingOptions:
    """How experts move while a model serves.

    Raises:
        UsageError: on construction, if one is out of range.
    """

    policy: AdaptOptions = field(default_factory=AdaptOptions)
    """Its prices of moves are of OLMoE's experts; `adapting` without options takes this model's."""
    boundary: int = 5
    """Steps between two moments at which ranks agree. Not tuned."""
    bytes_per_step: int | None = None
    """That a rank sends of experts a step, at most; None = a tenth of what dispatch sends between nodes in the lightest of recent steps."""
    patience_seconds: float = 10.0
    """After which a part of an expert that was to come in some step is late, and the migration is rolled back."""
    timeout_seconds: float = 45.0
    """How long a rank waits for another where ranks agree."""
    view_every: int = 0
    """Steps between two views of traffic, for `Adaptation.view`; 0 = none."""
    log: Path | None = None
    """File on rank 0's machine that gets a JSON line for each decision and each measured effect; it is added to. None = no log."""

    def __post_init__(self) -> None:
        timed = all(0 < seconds < math.inf for seconds in (self.patience_seconds, self.timeout_seconds))
        if self.boundary < 1 or self.view_every < 0 or not timed or not (self.bytes_per_step is None or self.bytes_per_step > 0):
            raise UsageError(f"{self}: boundary, bytes_per_step and seconds are finite and above 0, view_every is 0 or more")


class Adaptation:
    """Watches, agrees and moves. Every rank calls `begin_step` before each forward pass, and none of its methods waits for weights."""

    def __init__(
        self,
        session: ExpertParallelSession,
        migration: Migration,
        mover: Mover,
        ballot: Ballot,
        decider: Decides | None,
        options: AdaptingOptions,
    ) -> None:
        self._session, self._migration, self._mover, self._ballot = session, migration, mover, ballot
        self._decider = decider
        """On rank 0."""
        self._options = options
        self._answer = Answer()
        self._steps = 0
        self._told: Told | None = None
        self._closed = self._moving = False
        self._sent = 0
        """By dispatch, as of the last step."""
        self._lightest = sys.maxsize
        """Bytes that dispatch sent in the step of the fewest since the last boundary."""

    @property
    def serving(self) -> Placement:
        """What serves now."""
        return self._migration.serving

    @property
    def status(self) -> AdaptStatus:
        """How it goes, as of the last boundary; rank 0 alone knows what was decided by, the reason of a decision to stay, and what
        was measured. What of this rank has died since is seen dead. May be asked from another thread."""
        counts, votes = self._migration.counts, () if self._told is None else self._told.votes
        state = "watching" if self._migration.state == WATCHING else "moving"
        return AdaptStatus(
            state="stopped" if self._closed or self._migration.state == STOPPED else state,
            alive=not self._closed and self._migration.state != STOPPED and self._alive and all(vote.alive for vote in votes),
            steps=self._steps,
            seen_steps=self._answer.steps,
            plan_age_steps=self._steps - counts.switched_step,
            plan_since=counts.switched_at,
            decisions=votes[0].decisions if votes else 0,
            skipped=votes[0].skipped if votes else 0,
            migrations=counts.migrations,
            rolled_back=counts.rolled_back,
            layers_switched=counts.layers_switched,
            copies_moved=counts.copies_moved,
            bytes_moved=sum(vote.received for vote in votes),
            expected_gain=counts.gain,
            measured_gain=self._answer.effects.measured,
            useless=self._answer.effects.useless,
            last_reason=self._answer.reason or counts.reason,
            last_error=counts.error or self._answer.error,
        )

    @property
    def view(self) -> TrafficView | None:
        """What recent traffic costs, on rank 0, if `view_every` asks for it; None before the first."""
        return self._answer.view

    def begin_step(self, step: Step) -> None:
        """Call before every forward pass, on every rank: tells the session, agrees with the other ranks, and lets layers switch.

        Raises:
            UsageError: gradients are on: an optimiser's states do not move with the experts.
        """
        if torch.is_grad_enabled():
            raise UsageError("adapt: gradients are on, and optimiser states do not move with experts; serve under torch.no_grad()")
        self._note_sent()
        at_boundary = self._steps % self._options.boundary == 0
        if at_boundary:
            self._boundary()
        self._session.begin_step(step)
        # Samples go over the same links at boundaries: what moves waits for the steps between them.
        self._migration.step(quiet=not at_boundary or self._options.boundary == 1)
        self._steps += 1

    def _boundary(self) -> None:
        self._told = self._ballot.read() or self._told
        if self._told is not None:
            self._migration.boundary(self._told)
            if self._decider is not None:
                self._ask(self._decider, self._told)
        idle, failure = self._mover.idle, self._mover.failure  # in this order: a failure is noted before the task ends
        vote = Vote(
            alive=int(self._alive),
            idle=int(idle),
            offer=self._migration.offered_bytes,
            chunk=self._chunk_bytes(),
            decisions=self._answer.decisions,
            skipped=self._answer.skipped,
            received=self._mover.bytes_received,
        )
        assert self._session.sampler is not None
        self._ballot.tell(vote, failure, self._session.sampler.packed())

    @property
    def _alive(self) -> bool:
        """Whether this rank's mover runs, and what decides beside it."""
        return self._mover.alive and (self._decider is None or self._decider.alive)

    def _ask(self, decider: Decides, told: Told) -> None:
        """Give what all ranks sampled to what decides, and take its proposal."""
        assert self._session.sampler is not None
        idle = self._migration.idle
        if idle and self._moving:
            decider.moved(self._migration.switched)
            self._moving = False
        decider.take(self._session.sampler.unpacked(told.samples))
        self._answer = decider.answer()
        if self._answer.plan and idle:
            self._migration.offer(self._answer.plan)
            self._moving = True

    def _note_sent(self) -> None:
        """Take in what dispatch sent in the last step: prefill sends far more than decode, and moves must not hold up the lightest."""
        meter = self._session.meter
        sent = meter.cross_node_bytes if meter.topology.num_nodes > 1 else meter.intra_node_bytes
        if self._steps:
            self._lightest = min(self._lightest, sent - self._sent)
        self._sent = sent

    def _chunk_bytes(self) -> int:
        lightest, self._lightest = self._lightest, sys.maxsize
        if self._options.bytes_per_step is not None:
            return self._options.bytes_per_step
        return LEAST_CHUNK if lightest == sys.maxsize else max(LEAST_CHUNK, int(SHARE * lightest))

    def close(self) -> None:
        """Stop watching and moving; what serves goes on serving. Collective."""
        self._closed = True
        self._session.sampler = None
        if self._decider is not None:
            self._decider.close()
        self._mover.close()
        self._ballot.close()

    def abandon(self) -> None:
        """Stop without the other ranks: one of them is lost."""
        self._closed = True
        if self._decider is not None:
            self._decider.close()
        self._mover.close(0)


@contextmanager
def adapting(
    loaded: LoadedModel, planned_on: RoutingTrace, *, options: AdaptingOptions | None = None, seed: int = 0
) -> Iterator[Adaptation]:
    """Let the experts of a loaded model follow the traffic inside the block, as docs/adapt.md explains. Collective.

    Args:
        loaded: with `equal_slots`.
        planned_on: the trace that its plan was made on: what traffic is compared with first.

    Raises:
        UsageError: vanilla dispatch, or a model that was loaded without `equal_slots`.
        MismatchError: the trace is of another model than the plan.
    """
    options = AdaptingOptions(policy=policy_of(loaded)) if options is None else options
    placement = loaded.placement
    if (planned_on.layer_ids, planned_on.num_experts) != (placement.layer_ids, placement.num_experts):
        raise MismatchError(f"{planned_on.source}: layers or experts are not those of {placement.source}; give the trace it was planned on")
    decider = None
    if dist.get_rank() == 0:
        decider = DecidingProcess(placement, planned_on, options.policy, seed, view_every=options.view_every, log=options.log)
    link = Link(timedelta(seconds=options.timeout_seconds))
    adaptation = started(loaded, planned_on.top_k, decider, link, options, seed=seed)
    try:
        yield adaptation
    except BaseException:
        adaptation.abandon()
        raise
    adaptation.close()


def policy_of(loaded: LoadedModel) -> AdaptOptions:
    """The default policy, its moves priced by the bytes of this model's experts over those of a token's way there and back."""
    slots = int(loaded.placement.slots_per_device().max()) * len(loaded.placement.layers)
    move = loaded.expert_bytes / slots / copy_bytes(loaded)
    return AdaptOptions(decision=DecisionOptions(prices=Prices(move=move, local_move=move / 10)))


def copy_bytes(loaded: LoadedModel) -> int:
    """That a copy of a token sends there and back."""
    return 2 * int(loaded.model.config.get_text_config().hidden_size) * int(loaded.model.dtype.itemsize)


def started(loaded: LoadedModel, top_k: int, decider: Decides | None, link: Link, options: AdaptingOptions, *, seed: int = 0) -> Adaptation:
    """An adaptation by what decides on rank 0, over a link. Collective."""
    session, placement, ranks = loaded.session, loaded.placement, dist.get_world_size()
    if session is None:
        raise UsageError("adapt: dispatch vanilla has no placement; use flat, hierarchical or auto")
    width = int(placement.slots_per_device().max())
    if any(route.num_slots != width for route in session.routes.values()):
        raise UsageError("adapt: the model's devices have no spare slots for experts that come; load it with equal_slots=True")
    session.sampler = ChoiceSampler(
        placement.layer_ids,
        top_k,
        steps=options.boundary,
        most=-(-options.policy.monitor.tokens_per_step // ranks),
        rank=dist.get_rank(),
        ranks=ranks,
        seed=seed,
        device=rank_device(),
    )
    weights = slot_weights(loaded.model)
    mover = Mover(weights, link, dist.get_rank(), options.patience_seconds)
    ballot = Ballot(timedelta(seconds=options.timeout_seconds))
    migration = Migration(session, placement, weights, mover, ballot)
    return Adaptation(session, migration, mover, ballot, decider, options)
