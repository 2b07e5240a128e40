"""`plan`: a trace and a topology to a placement, by any of the methods."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

from grace_moe.errors import UsageError
from grace_moe.placement import Placement
from grace_moe.planning.task import PlannedLayers, PlanningTask, Progress
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace

DEFAULT_METHOD = "grace"

_PLACES = {
    "grace": "grace_moe.planning.grace.grace:grace",
    "grace_paper": "grace_moe.planning.paper.grace_paper:grace_paper",
    "linear": "grace_moe.planning.baselines.linear:linear",
    "round_robin": "grace_moe.planning.baselines.round_robin:round_robin",
    "eplb": "grace_moe.planning.baselines.eplb:eplb",
    "occult": "grace_moe.planning.baselines.occult:occult",
    "c2r": "grace_moe.planning.baselines.c2r:c2r",
    "cooccurrence": "grace_moe.planning.baselines.cooccurrence:cooccurrence",
    "biased": "grace_moe.planning.baselines.biased:biased",
    "moetuner": "grace_moe.planning.baselines.moetuner:moetuner",
    "exflow": "grace_moe.planning.baselines.exflow:exflow",
}
"""Method -> module:function. A method takes a PlanningTask and its own options by keyword, and gives PlannedLayers."""

_BY_LOAD = ("grace", "linear", "round_robin", "eplb", "biased")
"""Methods that can plan on counts alone."""

METHODS = tuple(_PLACES)
"""Names that `plan` takes as `method`."""


def plan(
    trace: RoutingTrace,
    topology: Topology,
    method: str = DEFAULT_METHOD,
    *,
    seed: int = 0,
    redundancy: float | None = None,
    slots_per_device: int | None = None,
    expert_bytes: int | None = None,
    start: Placement | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Placement:
    """Decide which device holds which expert. The same arguments give the same placement, byte for byte.

    Args:
        method: one of `METHODS`.
        seed: of whatever the method draws at random.
        redundancy: slots in all over experts, 1 or more (1.25 = a quarter more slots than experts).
        slots_per_device: most experts a device may hold in a layer. Give this or `redundancy`.
        expert_bytes: memory of one expert of one layer; given it, the topology's `memory_bytes` limit the slots.
        start: an existing placement to improve on (`grace` only), several times faster than planning from nothing.
        progress: called with (layers done, layers in all).
        options: the method's own; see its function. Methods that make nothing of an argument say so in the
            provenance's notes.

    Raises:
        UsageError: an unknown method or option, or values that can't be met.
        MismatchError: `start` is of another model, topology or number of slots.
    """
    function = _function(method)
    signature = inspect.signature(function)
    allowed = [name for name, parameter in signature.parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
    for name in options:
        if name not in allowed:
            raise UsageError(f"method {method} has no option {name!r}; it has {', '.join(allowed) or 'none'}")
    task = PlanningTask(
        trace=trace,
        topology=topology,
        seed=seed,
        redundancy=redundancy,
        slots_per_device=slots_per_device,
        expert_bytes=expert_bytes,
        start=start,
        progress=progress,
    )
    if start is not None and method != "grace":
        raise UsageError(f"method {method} plans from nothing; leave out start, or use method grace")
    if trace.counts_only and method not in _BY_LOAD:
        raise UsageError(
            f"{trace.source}: counts only, and method {method} needs to know which experts fire together; "
            f"use one of {', '.join(_BY_LOAD)}, or a trace of tokens"
        )
    planned = function(task, **options)
    used = {name: options.get(name, signature.parameters[name].default) for name in allowed}
    limits = {"redundancy": redundancy, "slots_per_device": slots_per_device, "expert_bytes": expert_bytes}
    placement = Placement(
        topology=topology,
        num_experts=trace.num_experts,
        layers=planned.layers,
        model=trace.model,
        replica_choice=planned.replica_choice,
        provenance={
            "method": method,
            "options": used | limits,
            "seed": seed,
            "trace_digest": trace.digest,
            "trace": {"model": trace.model, "dataset": trace.dataset, "tokens": trace.num_tokens, **_drawn(trace)},
            **({} if start is None else {"start": start.provenance}),
            "version": version("grace-moe"),
            "notes": list(planned.notes),
        },
        source=f"plan by {method}",
    )
    if (placement.slots_per_device() > np.array(task.slot_limits)).any():
        placement.provenance["notes"].append(f"{method} keeps no limit on slots: some device holds more experts than its limit")
    return placement


def _drawn(trace: RoutingTrace) -> dict[str, bool]:
    """What a provenance says of a trace that was not recorded."""
    return {"surrogate": True} if trace.surrogate else {}


def equal_slots(trace: RoutingTrace, topology: Topology, *, redundancy: float, expert_bytes: int | None = None) -> int:
    """Slots of each device in a layer that methods with equal slots get from this redundancy.

    Raises:
        UsageError: a redundancy out of range, or a device too small for an equal share of the experts.
    """
    return PlanningTask(trace=trace, topology=topology, redundancy=redundancy, expert_bytes=expert_bytes).equal_slots


def _function(method: str) -> Callable[..., PlannedLayers]:
    if method not in _PLACES:
        raise UsageError(f"method {method!r} is unknown; use one of {', '.join(METHODS)}")
    module, _, name = _PLACES[method].partition(":")
    function: Callable[..., PlannedLayers] = getattr(importlib.import_module(module), name)
    return function
