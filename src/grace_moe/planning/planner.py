"""`plan`: a trace and a topology to a placement, by any of the methods."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

from grace_moe.choice.node_sets import MAX_MASK_NODES
from grace_moe.cost.hardware import hardware_of
from grace_moe.cost.rates import exchange_rates
from grace_moe.cost.step import Setting
from grace_moe.errors import MismatchError, UsageError
from grace_moe.placement import Placement
from grace_moe.planning.task import PlannedLayers, PlanningTask, Progress, Redundancy
from grace_moe.topology import Topology
from grace_moe.trace import LoadProfile, RoutingTrace

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

_FOR_COPIES = ("price", "move_price", "request_placement", "decode", "decode_copies", "decode_load", "decode_batch")
"""Options of `grace` that a plan for time has no use for: the cost model sets the prices, and `phase` says what is served."""

METHODS = tuple(_PLACES)
"""Names that `plan` takes as `method`."""


def plan(
    trace: RoutingTrace | LoadProfile,
    topology: Topology,
    method: str = DEFAULT_METHOD,
    *,
    seed: int = 0,
    redundancy: Redundancy | None = None,
    slots_per_device: int | None = None,
    expert_bytes: int | None = None,
    start: Placement | None = None,
    backend: str | None = None,
    setting: Setting | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Placement:
    """Decide which device holds which expert. The same arguments give the same placement, byte for byte.

    >>> from grace_moe import Topology, plan
    >>> from grace_moe.trace import synthetic_trace
    >>> placement = plan(synthetic_trace(tokens=300, experts=8, top_k=2), Topology.parse("2x2"))
    >>> placement.slots_total_over_experts  # 8 experts and 25% more: 10 slots, which 4 devices of equal slots round up to 12
    1.5
    >>> plan(synthetic_trace(tokens=300, experts=8, top_k=2), Topology.parse("2x2"), "linear").layers[0].devices_of_expert
    ((0,), (0,), (1,), (1,), (2,), (2,), (3,), (3,))

    Args:
        method: one of `METHODS`.
        seed: of whatever the method draws at random.
        redundancy: slots in all over experts, 1 or more; or `auto`: the least that fits, as many on every device as its experts need.
        slots_per_device: most experts a device may hold in a layer. Give this or `redundancy`.
        expert_bytes: memory of one expert of one layer; given it, the topology's `memory_bytes` limit the slots.
        start: an existing placement to improve on (`grace` only), several times faster than planning from nothing.
        backend: of `cost.sent.SENDS`: the plan spares what it sends (`grace` only; docs/compare.md#backends). None = one copy a node.
        setting: plan for the time of a layer served like this, over its backend (`grace` only; docs/planner.md#plans-for-time).
        progress: called with (layers done, layers in all).
        options: the method's own; see its function. Methods that make nothing of an argument say so in the
            provenance's notes.

    Raises:
        UsageError: an unknown method or option, values that can't be met, or a trace without tokens.
        MismatchError: `start` is of another model, topology or number of slots; or `setting` is of another number of experts.
    """
    function = _function(method)
    used = _options_of(function, method, options)
    task = PlanningTask(
        recording=trace,
        topology=topology,
        seed=seed,
        redundancy=redundancy,
        slots_per_device=slots_per_device,
        expert_bytes=expert_bytes,
        start=start,
        backend=_backend(backend, setting),
        setting=setting,
        progress=progress,
    )
    _check_method(method, task, options)
    planned = function(task, **options)
    placement = Placement(
        topology=topology,
        num_experts=trace.num_experts,
        layers=planned.layers,
        model=trace.model,
        replica_choice=planned.replica_choice,
        provenance=_provenance(method, used, task, planned),
        source=f"plan by {method}",
    )
    if (placement.slots_per_device() > np.array(task.slot_limits)).any():
        placement.provenance["notes"].append(f"{method} keeps no limit on slots: some device holds more experts than its limit")
    return placement


def equal_slots(trace: RoutingTrace | LoadProfile, topology: Topology, *, redundancy: Redundancy, expert_bytes: int | None = None) -> int:
    """Slots of each device in a layer that methods with equal slots get from this redundancy.

    Raises:
        UsageError: a redundancy out of range, or a device too small for an equal share of the experts.
    """
    return PlanningTask(recording=trace, topology=topology, redundancy=redundancy, expert_bytes=expert_bytes).equal_slots


def _provenance(method: str, options: dict[str, Any], task: PlanningTask, planned: PlannedLayers) -> dict[str, Any]:
    """What made the placement, so that it can be made again."""
    limits = {"redundancy": task.redundancy, "slots_per_device": task.slots_per_device, "expert_bytes": task.expert_bytes}
    recording = task.recording
    tokens = {"tokens": recording.num_tokens} if isinstance(recording, RoutingTrace) else {"tokens": None, "counts_only": True}
    drawn = {"surrogate": True} if isinstance(recording, RoutingTrace) and recording.surrogate else {}
    return {
        "method": method,
        "options": options | limits,
        "seed": task.seed,
        "trace_digest": recording.digest,
        "trace": {"model": recording.model, "dataset": recording.dataset, **tokens, **drawn},
        **({} if task.backend is None or method != DEFAULT_METHOD else {"backend": task.backend}),
        **({} if task.setting is None else {"served": _served(task.topology, task.setting)}),
        **({} if task.start is None else {"start": task.start.provenance}),
        "version": version("grace-moe"),
        "notes": [*planned.notes, *_unused_backend(method, task)],
    }


def _served(topology: Topology, setting: Setting) -> dict[str, Any]:
    """What the plan's time is of, and the prices that it follows."""
    rates = exchange_rates(topology, setting.model, phase=setting.phase, batch=setting.batch, backend=setting.backend)
    return {
        "phase": setting.phase,
        "batch": setting.batch,
        "overlap": setting.overlap,
        "model": dict(vars(setting.model)),
        "hardware": hardware_of(topology).name,
        "seconds": rates.to_dict(),
    }


def _unused_backend(method: str, task: PlanningTask) -> tuple[str, ...]:
    """The note of a method that plans the same whatever is sent."""
    if task.backend is None or method == DEFAULT_METHOD:
        return ()
    return (f"backend {task.backend} has no effect: {method} plans the same for all",)


def _options_of(function: Callable[..., PlannedLayers], method: str, given: dict[str, Any]) -> dict[str, Any]:
    """The method's options: those given, the others' defaults. Raises UsageError where it has no such option."""
    parameters = inspect.signature(function).parameters.values()
    defaults = {parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    for name in given:
        if name not in defaults:
            raise UsageError(f"method {method} has no option {name!r}; it has {', '.join(defaults) or 'none'}")
    return defaults | given


def _check_method(method: str, task: PlanningTask, options: dict[str, Any]) -> None:
    """Raise UsageError where the method can't plan from this start or trace, or for this setting."""
    if task.setting is not None:
        _check_setting(method, task, task.setting, options)
    if task.start is not None and method != "grace":
        raise UsageError(f"method {method} plans from nothing; leave out start, or use method grace")
    if isinstance(task.recording, LoadProfile) and method not in _BY_LOAD:
        raise UsageError(
            f"{task.recording.source}: counts only, and method {method} needs to know which experts fire together; "
            f"use one of {', '.join(_BY_LOAD)}, or a trace of tokens"
        )


def _backend(backend: str | None, setting: Setting | None) -> str | None:
    """The one that is named. Raises UsageError where both name one."""
    if setting is None:
        return backend
    if backend is not None:
        raise UsageError("setting names a backend already; leave backend out")
    return setting.backend


def _check_setting(method: str, task: PlanningTask, setting: Setting, options: dict[str, Any]) -> None:
    """Raise UsageError where a plan for time is not to be had, or an option would have no effect on it."""
    instead = "phase, batch, model and overlap"
    if method != DEFAULT_METHOD:
        raise UsageError(f"method {method} plans the same whatever is served; leave out {instead}, or use method grace")
    if task.start is not None:
        raise UsageError(f"a plan for time starts from nothing; leave out start, or {instead}")
    for name in _FOR_COPIES:
        if name in options:
            raise UsageError(f"option {name} is for plans for copies; leave it out, or {instead}")
    if isinstance(task.recording, LoadProfile):
        raise UsageError(f"{task.recording.source}: counts only, and a plan for time needs a trace of tokens; plan for copies")
    if task.topology.num_nodes > MAX_MASK_NODES:
        raise UsageError(f"plans for time take up to {MAX_MASK_NODES} nodes, and {task.topology.source} has {task.topology.num_nodes}")
    if setting.model.num_experts != task.num_experts:
        raise MismatchError(
            f"{setting.model.source} has {setting.model.num_experts} experts, but {task.recording.source} has {task.num_experts}; "
            "give the model of the trace"
        )


def _function(method: str) -> Callable[..., PlannedLayers]:
    if method not in _PLACES:
        raise UsageError(f"method {method!r} is unknown; use one of {', '.join(METHODS)}")
    module, _, name = _PLACES[method].partition(":")
    function: Callable[..., PlannedLayers] = getattr(importlib.import_module(module), name)
    return function
