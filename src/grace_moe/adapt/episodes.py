"""When to look, and what a decision after a change may do: the same for whatever is seen of traffic, tokens or loads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from grace_moe.adapt.decide import Decision, DecisionOptions
from grace_moe.adapt.options import AdaptOptions
from grace_moe.adapt.review import Review
from grace_moe.placement import Placement, difference
from grace_moe.trace.change import Change

REVIEWS = 5
"""Of what has moved, each at twice the steps of the last. Not tuned."""
SETTLED = 4
"""Times the recent steps, since a change, from which on another one is told: before, requests of the old traffic still end. Not tuned."""
MOST_CAUTION = 4
"""Times that the wait after a change may double, for decisions that did harm. Not tuned."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """A look that led to a decision."""

    step: int
    change: Change
    decision: Decision
    expected: float = 0.0
    """What the decisions since the change, this one included, were to save: what `measured` is held against."""
    measured: float | None = None
    """What all moves since the change save, on requests that came in after them: copies per token, mean over layers; None = not known."""
    waits: int = 0
    """Steps from the next change that is told until a decision, as of the last review: more, the more decisions did harm."""


@dataclass(frozen=True, kw_only=True)
class _Episode:
    """From a change until its last look."""

    first_step: int
    """Tokens of this step and later ones count."""
    began: int
    served: Placement
    """What served when it began."""
    counted: Placement
    """What served when moves were counted last."""
    moved: int = 0
    """Expert copies that have moved since `budget_since`, at most: the budget is for all of them."""
    budget_since: int
    next_look: int
    looks: int = 0
    waiting: tuple[int, ...] = ()
    """Layers that this look has yet to decide on."""

    @property
    def undecided(self) -> bool:
        """Whether nothing was decided since the change."""
        return self.looks == 0 and not self.waiting


@dataclass(frozen=True, kw_only=True)
class _Moves:
    """What has moved since a change, to be reviewed on what came in after it."""

    look: int
    """Place of the last decision among the looks."""
    former: Placement
    """What served before the change."""
    since: int
    """Step at which the last layer switched."""
    next_review: int
    reviews: int = 0
    harmed: bool = False
    """Whether a review has found harm."""


class Watches(Protocol):
    """What an adapter asks of its monitor."""

    step: int
    """Steps observed."""

    @property
    def tokens_per_step(self) -> float:
        """Mean over all steps."""


class BaseAdapter(ABC):
    """Watches the steps of a cluster and says when to move to which placement. It moves nothing itself.

    After a change, only tokens since then count. A decision is made at once, and again whenever the steps since the change have grown by so
    much (`growth`); its horizon grows with them, so that traffic which soon changes back moves little. Where the layers are more than one
    decision plans, those that changed most come first, and the others at the next checks. The budget is for all that moves after a change.
    What was decided on last is what later traffic is compared with. What has moved is reviewed on the requests that came in since: where it
    surely does harm, it goes back.

    Bursts that are over before they are told make every decision come too late. So each decision that did harm doubles the wait after the
    next change, and one that did good to the end halves it. A change that is over after the wait is none.
    """

    monitor: Watches
    looks_after_change: int
    """At most. Not tuned."""
    growth: float
    """Steps since the change at a look, over those at the look before. Not tuned."""
    tells_between_looks: bool
    """Whether another change is told between looks, and planned for alone. If not, the next look finds it, and a change soon after the last
    look is planned for by the mix of all that is remembered."""

    def __init__(self, serving: Placement, *, options: AdaptOptions | None = None, seed: int = 0) -> None:
        self.options = AdaptOptions() if options is None else options
        self.serving = serving
        """The placement that serves; whoever moves experts sets it when they have moved."""
        self.looks: list[Look] = []
        self._seed = seed
        self._episode: _Episode | None = None
        self._last_ended: int | None = None
        self._told_at = 0
        self._target = self._served = serving
        self._moves: _Moves | None = None
        self._caution = 0

    @abstractmethod
    def _change(self, step: int) -> Change:
        """Whether the last steps differ from those that were last planned for."""

    @abstractmethod
    def _decide(self, first_step: int, options: DecisionOptions, order: Sequence[int]) -> Decision:
        """A decision by what was seen from a step on, which is what later steps are compared with.

        Args:
            order: layers that may change; the first ones are planned.
        """

    @abstractmethod
    def _affordable(self, began: int, step: int, target: Placement) -> float:
        """Moves that may be made beside those under way to the target; traffic changed at step `began`."""

    @abstractmethod
    def _review(self, former: Placement, since: int, options: DecisionOptions) -> Review | None:
        """What the moves from `former` save, by what was seen from a step on; None where that tells nothing."""

    def look(self) -> Decision | None:
        """A decision where it is time for one, else None; to be called after each step."""
        step = self.monitor.step
        self._note_switches(step)
        if step % self.options.check_every or step < self.options.recent_steps:
            return None
        looks = self._episode is None or step >= self._episode.next_look or self._settled(self._episode, step)
        reviews = self._moves is not None and step >= self._moves.next_review
        if not looks and not reviews:
            return None
        change = self._change(step)
        back = self._reviewed(self._moves, step) if reviews and self._moves is not None else None
        if back is not None:
            return self._decided(back, change)
        if not looks:
            return None
        told = change.chance < self.options.false_alarms * self.options.check_every
        if self._episode is None:
            self._episode = self._begin(step) if told else None
        elif self._episode.undecided:
            self._episode = self._episode if told else None  # traffic has changed back during the wait
        elif told and self._settled(self._episode, step):
            self._episode = self._begin_again(self._episode, step)
        if self._episode is None or step < self._episode.next_look:
            return None
        self._episode = self._counted(self._episode)
        if not self._episode.waiting:
            self._target = self.serving  # what was rolled back meanwhile is not sent for again unseen
        by_layer = change.by_layer or np.zeros(len(self.serving.layers))
        waiting = self._episode.waiting or tuple(np.argsort(by_layer, kind="stable")[::-1].tolist())
        decision = self._decide(self._episode.first_step, self._decision_options(self._episode, step), waiting)
        former = self._episode.served
        self._episode = self._next(self._episode, step, waiting[len(decision.considered) :])
        return self._decided(decision, change, former=former)

    def _decided(self, decision: Decision, change: Change, *, former: Placement | None = None) -> Decision:
        """Keeps it, and what served before the change, to review it; None = it is not reviewed: what went back stays there."""
        step = self.monitor.step
        decision = self._with_others_under_way(decision)
        expected = decision.gain.mean
        if self._moves is not None and self._moves.former is former:
            expected += self.looks[self._moves.look].expected
        if decision.placement is not None:
            review_at = step + self.options.recent_steps
            self._moves = None if former is None else _Moves(look=len(self.looks), former=former, since=step, next_review=review_at)
        self.looks.append(Look(step=step, change=change, decision=decision, expected=expected))
        return decision

    def _note_switches(self, step: int) -> None:
        if self.serving is self._served:
            return
        if self._moves is not None and self.serving.layers != self._served.layers:
            self._moves = replace(self._moves, since=step, next_review=step + self.options.recent_steps)
        self._served = self.serving

    def _reviewed(self, moves: _Moves, step: int) -> Decision | None:
        """To go back, where what has moved does harm. Reviews come whenever the steps since the moves have doubled."""
        horizon = self.options.persistence * self.monitor.tokens_per_step * (step - moves.since)
        options = replace(self.options.decision, horizon=min(self.options.decision.horizon, horizon), seed=self._seed)
        found = self._review(moves.former, moves.since, options)
        done, harms = moves.reviews + 1 >= REVIEWS, found is not None and found.measured < 0
        if found is not None:
            if harms and not moves.harmed:
                self._caution = min(self._caution + 1, MOST_CAUTION)
            elif done and not harms:
                self._caution = max(self._caution - 1, 0)
            self.looks[moves.look] = replace(self.looks[moves.look], measured=found.measured, waits=self._wait)
        later = replace(moves, reviews=moves.reviews + 1, next_review=2 * step - moves.since, harmed=moves.harmed or harms)
        self._moves = None if done else later
        return None if found is None else found.back

    def _with_others_under_way(self, decision: Decision) -> Decision:
        """The decision, where layers that it did not plan go on to where an earlier one sends them."""
        if decision.placement is None:
            return decision
        layers = tuple(
            new if index in decision.considered else other
            for index, (new, other) in enumerate(zip(decision.placement.layers, self._target.layers, strict=True))
        )
        self._target = replace(decision.placement, layers=layers)
        return replace(decision, placement=self._target)

    def _settled(self, episode: _Episode, step: int) -> bool:
        """Whether another change is told as if there were no episode."""
        return self.tells_between_looks and not episode.waiting and step - episode.began >= SETTLED * self.options.recent_steps

    def _begin(self, step: int) -> _Episode:
        self._told_at = step
        often = not self.tells_between_looks and self._last_ended is not None and step - self._last_ended < self._long
        began = step - self.options.recent_steps
        return _Episode(
            first_step=0 if often else began,
            began=began,
            served=self.serving,
            counted=self.serving,
            budget_since=began,
            next_look=step + self._wait,
        )

    def _begin_again(self, episode: _Episode, step: int) -> _Episode:
        """Traffic has changed before its last change was done with: the budget is for both, unless that was long ago."""
        if step - episode.budget_since >= self._long:
            return self._begin(step)
        self._told_at, began = step, step - self.options.recent_steps
        return replace(episode, first_step=began, began=began, looks=0, next_look=step + self._wait)

    @property
    def _long(self) -> float:
        """Steps from a change to its last look."""
        return self.options.recent_steps * self.growth**self.looks_after_change

    @property
    def _wait(self) -> int:
        """Steps from a change that is told until the first decision: the steps since the change double with each decision that did harm."""
        return self.options.recent_steps * ((1 << self._caution) - 1)

    def _counted(self, episode: _Episode) -> _Episode:
        """With the moves since they were counted last, and those of a layer that is on its way: it may come to nothing."""
        under_way = difference(self._target, self.serving).loads.sum(axis=1)
        moved = episode.moved + difference(self.serving, episode.counted).moved + int(under_way.max(initial=0))
        return replace(episode, counted=self.serving, moved=moved)

    def _next(self, episode: _Episode, step: int, waiting: tuple[int, ...]) -> _Episode | None:
        """The episode after a decision; None after its last look."""
        if waiting:
            return replace(episode, waiting=waiting, next_look=step + 1)
        if episode.looks + 1 >= self.looks_after_change:
            self._last_ended = step
            return None
        return replace(episode, looks=episode.looks + 1, waiting=(), next_look=self._next_step(step, episode))

    def _next_step(self, step: int, episode: _Episode) -> int:
        every = self.options.check_every
        return step + max(every, int((self.growth - 1) * (step - episode.began) / every) * every)

    def _decision_options(self, episode: _Episode, step: int) -> DecisionOptions:
        seen = self.monitor.tokens_per_step * (step - episode.began)
        own, copies = self.options.decision, int(self.serving.slots_per_device().sum())
        affordable = self._affordable(episode.began, step, self._target)
        left = max(0.0, min(int(own.budget * copies) - episode.moved, affordable)) / copies
        return replace(own, horizon=min(own.horizon, self.options.persistence * seen), budget=left, seed=self._seed)
