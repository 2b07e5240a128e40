"""What the plug-ins of vLLM and SGLang share: the plan that the environment names, and the map that it gives for an engine's own sizes.

Nothing here draws at random or reads a clock: every rank computes the same map from the same loads.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from grace_moe.engines.equaliser import equalise, without_devices
from grace_moe.engines.live.given_maps import GivenMaps, LiveMap
from grace_moe.engines.live.replanner import Replanner, Serving
from grace_moe.engines.recordings.imported import Hints
from grace_moe.engines.slot_map import SlotMap
from grace_moe.engines.slot_tables import matrix, slot_map
from grace_moe.errors import GraceError, PlacementError, UsageError
from grace_moe.files import read_json
from grace_moe.placement import Placement
from grace_moe.topology import Topology

PLAN, REPLAN, MOVES, CHOICE = "GRACE_MOE_PLAN", "GRACE_MOE_REPLAN", "GRACE_MOE_MOVES", "GRACE_MOE_CHOICE"
FORMER_CHOICE = "GRACE_MOE_LOCAL_ROUTING"
"""What `GRACE_MOE_CHOICE=near` was called; refused, so that nobody loses it without a word."""
CHOICES = ("near", "joint", "theirs")
"""How replicas are chosen: each expert's nearest, by weight; all of a token's together; or by the engine's own rule."""


@dataclass
class LivePlan:
    """A plan in use by an engine."""

    path: Path
    replan: bool
    """Follow traffic, from the map that serves; else the plan stays as it is."""
    choice: str
    """One of `CHOICES`, or empty: the best that the engine allows."""
    planned: Placement | npt.NDArray[np.int32] = field(repr=False)
    """A placement, or a slot map whose ranks are known once the engine says them."""
    log: logging.Logger = field(repr=False)
    """The engine's own, or one below it: others may have no handler there."""
    digest: str = ""
    """First 12 hex digits of the file's SHA-256: the logs of all ranks must show the same."""
    two_phases: bool = False
    """Whether the engine chooses replicas in decode apart, so that weights for decode are kept. Set before the first map."""
    given: GivenMaps = field(default_factory=GivenMaps, repr=False)
    """What the engine was given of late."""
    replanner: Replanner = field(default_factory=Replanner, repr=False)
    _equal: dict[tuple[int, int, int, tuple[int, ...]], Placement] = field(default_factory=dict, repr=False)

    def map_for(
        self,
        loads: npt.NDArray[np.int64],
        num_slots: int,
        num_ranks: int,
        num_nodes: int,
        *,
        dead: tuple[int, ...] = (),
        serving: Serving | None = None,
    ) -> LiveMap:
        """The map for an engine of these sizes.

        Args:
            loads: `[MoE layers, experts]` tokens that each expert got in the engine's window; all zero while it profiles.
            dead: ranks that serve no more. The map is of the others alone, of as many slots each, numbered anew in their old order.
            serving: what serves, and more of what was measured; None = `loads` alone, under the map that was given last.

        Raises:
            GraceError: the plan is for another model, or another number of ranks; or too few are left to hold every expert.
        """
        placement = self._equalised(loads.shape, (num_slots, num_ranks, num_nodes, dead))
        if self.replan:
            replanned = self.replanner.next(placement, self.given, serving or Serving(loads=loads))
            placement = replanned.placement
            if replanned.reason:
                self.log.info("GRACE-MoE: %s", replanned.reason)
        found = LiveMap(slots=SlotMap.of(placement), placement=placement)
        self.given.remember(found)
        return found

    def _equalised(self, shape: tuple[int, ...], key: tuple[int, int, int, tuple[int, ...]]) -> Placement:
        """The plan with equal slots on the ranks that are left. Raises GraceError: it doesn't fit."""
        num_slots, num_ranks, num_nodes, dead = key
        if key in self._equal and (len(self._equal[key].layers), self._equal[key].num_experts) == shape:
            return self._equal[key]
        placement = self._placement(num_ranks, num_nodes)
        found = (len(placement.layers), placement.num_experts, placement.topology.num_devices)
        if found != (*shape, num_ranks):
            raise UsageError(
                f"{self.path}: {found[0]} MoE layers of {found[1]} experts on {found[2]} ranks, "
                f"but the engine has {shape[0]} of {shape[1]} on {num_ranks}; plan for that"
            )
        if num_slots % num_ranks:
            raise UsageError(f"{num_slots} slots are not divisible by {num_ranks} ranks; change the number of redundant experts")
        equal = equalise(placement, slots_per_device=num_slots // num_ranks, two_phases=self.two_phases)
        if dead:
            equal = equalise(without_devices(equal.placement, dead), slots_per_device=num_slots // num_ranks)
        for note in equal.notes():
            self.log.info("GRACE-MoE: %s: %s", self.path, note)
        self._equal[key] = equal.placement
        return equal.placement

    def _placement(self, num_ranks: int, num_nodes: int) -> Placement:
        if isinstance(self.planned, Placement):
            if self.planned.topology.num_nodes != num_nodes:
                self.log.warning(
                    "GRACE-MoE: %s is for %s, and the engine sees %d nodes: it is right all the same, but sends more than it says",
                    self.path,
                    self.planned.topology.shape,
                    num_nodes,
                )
            return self.planned
        nodes = num_nodes if num_ranks % num_nodes == 0 else 1
        slots = slot_map(self.planned, Hints(), num_ranks=num_ranks, source=str(self.path))
        return slots.to_placement(Topology.parse(f"{nodes}x{num_ranks // nodes}"))


def plan_from_environment(log: logging.Logger) -> LivePlan | None:
    """The plan that `GRACE_MOE_PLAN` names (a placement, or vLLM's slot map); None where it is unset or empty.

    Args:
        log: where notes go.

    Raises:
        PlacementError: it can't be read. An engine that was told to use a plan does not start without it.
        UsageError: a switch with another value than it takes, or with no plan to act on.
    """
    text = os.environ.get(PLAN, "")
    replan, choice = switch(REPLAN), _one_of(CHOICE, CHOICES)
    if os.environ.get(FORMER_CHOICE, "") not in ("", "0"):
        raise UsageError(f"{FORMER_CHOICE} has gone; set {CHOICE}=near")
    if not text:
        if replan or choice:
            raise UsageError(f"{REPLAN if replan else CHOICE} is set without {PLAN}; name the plan, or unset it")
        return None
    path = Path(text)
    value = read_json(path, PlacementError)
    planned = matrix(value, text, "map") if isinstance(value, list) else Placement.load(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    replanner = Replanner(most_moves=_moves())
    return LivePlan(path=path, replan=replan, choice=choice, planned=planned, log=log, digest=digest, replanner=replanner)


def switch(name: str, default: str = "0") -> bool:
    """Whether a variable of the environment is 1; empty is as good as unset.

    Raises:
        UsageError: it is neither 0 nor 1.
    """
    value = os.environ.get(name) or default
    if value not in ("0", "1"):
        raise UsageError(f"{name}={value!r}: set it to 1 or 0")
    return value == "1"


def _moves() -> int | None:
    """The budget of moves; None where it is unset. Raises UsageError: not a number of slots."""
    text = os.environ.get(MOVES, "")
    if text and not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise UsageError(f"{MOVES}={text!r}: set it to the most slots that a rearrangement may change, such as 32")
    return int(text) if text else None


def _one_of(name: str, values: tuple[str, ...]) -> str:
    """The value of a variable, empty where it is unset. Raises UsageError: another than these."""
    value = os.environ.get(name, "")
    if value and value not in values:
        raise UsageError(f"{name}={value!r}: set it to {', '.join(values[:-1])} or {values[-1]}")
    return value


def follows(live: LivePlan, model: str = "") -> str:
    """What is in force, as a line of the log; without a model, what will be once the engine balances one."""
    how = ", re-planned while it serves" if live.replan else ""
    who = f"{model}: the expert balancer follows" if model else "the expert balancer, where it is on, follows"
    return f"GRACE-MoE: {who} {live.path} ({live.digest}{how})"


def told(error: GraceError) -> str:
    """An error as a line of the log, with what happens instead."""
    return f"GRACE-MoE: {error}. The engine's own balancer decides instead."
