"""Several methods on the same requests: plan on one part, measure on another."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypedDict, Unpack

from grace_moe.cost.flows import Flows
from grace_moe.cost.hardware import hardware_of
from grace_moe.cost.sent import other_backend, sends_of
from grace_moe.cost.sizes import ModelSizes
from grace_moe.errors import UsageError
from grace_moe.evaluation.flows import replay_flows
from grace_moe.evaluation.halves import parts_of
from grace_moe.evaluation.methods import is_of_batches, options_of, parse_method, serving_of
from grace_moe.evaluation.metrics import Evaluation
from grace_moe.evaluation.replay import evaluate
from grace_moe.evaluation.row_time import backend_row_time, row_time
from grace_moe.evaluation.serving import PREFILL_BATCH
from grace_moe.placement import Placement
from grace_moe.planning import METHODS, Redundancy, plan
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace

PlannedBy: TypeAlias = dict[tuple[str, str | None], tuple[Placement, float]]
"""(method, policy that it was planned for) -> the placement, and the seconds that it took."""


class SlotLimits(TypedDict, total=False):
    """What limits the slots of every plan; see `planning.plan`."""

    redundancy: Redundancy | None
    slots_per_device: int | None
    expert_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """One method."""

    method: str
    """As it was asked for: METHOD or METHOD+POLICY."""
    plan_seconds: float
    placement: Placement
    evaluation: Evaluation
    flows: Flows | None = None
    """What was sent, by device; None = no backend was asked for."""

    def to_dict(self, topology: Topology, model: ModelSizes | None = None, backend: str | None = None) -> dict[str, Any]:
        """The row's JSON: the metrics by name, the modelled time of a layer (None = of OLMoE's sizes), and what a backend sends."""
        if backend is None or self.flows is None:
            modelled = row_time(self.evaluation, topology, model)
        else:
            modelled = backend_row_time(self.evaluation, self.flows, topology, model, backend)
        return {
            "method": self.method,
            "plan_seconds": round(self.plan_seconds, 3),
            **self.evaluation.to_dict(),
            **({} if backend is None else {"backend_copies": self.evaluation.backend_copies(backend)}),
            **modelled.to_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A method that can't plan for this trace, topology and number of slots."""

    method: str
    error: UsageError

    def to_dict(self) -> dict[str, str]:
        """The row's JSON: no metrics, but the reason."""
        return {"method": self.method, "error": str(self.error)}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Every method on the same requests."""

    rows: tuple[ComparisonRow, ...]
    """At least one."""
    refused: tuple[Refusal, ...] = ()
    topology: Topology
    planned_on: RoutingTrace
    measured_on: RoutingTrace
    model: ModelSizes | None = None
    """Whose layer is timed; None = OLMoE's, at 100 TFLOP/s."""

    backend: str | None = None
    """Whose copies are shown too, and over which a layer is timed; None = none was asked for."""
    halves: tuple[str, ...] = ()
    """What to know of the halves of one trace, if that is what was planned and measured on."""

    @property
    def assumed(self) -> str:
        """What the modelled time takes for granted."""
        over = "" if self.backend is None else f", over {self.backend}"
        if self.model is None:
            return f"OLMoE's sizes, whatever the model is (--model gives another's){over}"
        return f"sizes of {self.model.source} on {hardware_of(self.topology).name.upper()}{over}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the numbers should know: halves of unlike traffic, layers that are left out, plans made for another backend."""
        return (*self.halves, *self._missing_layers(), *self._other_backends())

    def _other_backends(self) -> tuple[str, ...]:
        if self.backend is None:
            return ()
        notes = ((row.method, other_backend(row.placement, self.backend)) for row in self.rows)
        return tuple(f"{method}: {note}" for method, note in notes if note is not None)

    def _missing_layers(self) -> tuple[str, ...]:
        recorded = self.rows[0].evaluation.recorded
        missing = [str(layer_id) for layer_id, found in zip(self.measured_on.layer_ids, recorded, strict=True) if not found]
        if not missing:
            return ()
        layers = f"layer{'s' * (len(missing) > 1)} {', '.join(missing)}"
        return (f"{self.measured_on.source}: nothing was recorded of {layers}: left out of all means.",)

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `grace-moe compare --json` (docs/metrics.md); `notes` only where there are any."""
        return {
            "rows": [
                *(row.to_dict(self.topology, self.model, self.backend) for row in self.rows),
                *(refusal.to_dict() for refusal in self.refused),
            ],
            "topology": self.topology.shape,
            **({} if self.backend is None else {"backend": self.backend}),
            "trace": _identity(self.planned_on),
            "eval": _identity(self.measured_on),
            **({} if self.model is None else {"assumed": self.assumed}),
            **({"notes": list(self.notes)} if self.notes else {}),
        }

    def require(self, *methods: str) -> None:
        """Raise the UsageError of the first of these methods that can't plan."""
        for refusal in self.refused:
            if refusal.method in methods:
                raise refusal.error


def _identity(trace: RoutingTrace) -> dict[str, Any]:
    return {"source": trace.source, "digest": trace.digest, "tokens": trace.num_tokens}


def compare(
    trace: RoutingTrace,
    topology: Topology,
    *,
    measure_on: RoutingTrace | None = None,
    methods: Sequence[str] = METHODS,
    seed: int = 0,
    backend: str | None = None,
    placements: Mapping[str, Placement] | None = None,
    on_method: Callable[[str], None] = lambda _: None,
    **limits: Unpack[SlotLimits],
) -> Comparison:
    """Plan with each method on `trace` and replay `measure_on`.

    >>> from grace_moe import Topology, compare
    >>> from grace_moe.trace import synthetic_trace
    >>> trace = synthetic_trace(tokens=400, experts=16, top_k=4)
    >>> comparison = compare(trace, Topology.parse("2x2"), methods=("linear", "eplb"))
    >>> [(row.method, row.evaluation.slots_total_over_experts) for row in comparison.rows]
    [('linear', 1.0), ('eplb', 1.25)]

    Args:
        measure_on: None = the trace's second half of requests; then only the first half is planned on.
        methods: of `planning.METHODS`; METHOD+POLICY replays the method's placement under one of `choice.BATCH_POLICIES`;
            `grace+requests` plans for request placement, and measures with it; `grace+decode` plans with `decode="experts"`.
            Where a policy for batches or decode is among them, the balance of batches is measured for all.
        seed: of every plan, and of the replay.
        backend: one of `cost.sent.SENDS`: `grace` plans for it, and what it sends of each method's placement is shown and timed.
        placements: of methods that are planned already, on the same part: they are measured, and their planning took no time.
        on_method: told the name of each method when it is planned and measured.
        limits: `redundancy`, `slots_per_device`, `expert_bytes` of every plan.

    Raises:
        MismatchError: the traces are of different models.
        UsageError: an unknown method or policy; or none of the methods can plan: the first one's reason. Where others can, a method
            that can't is among `refused`.
    """
    planned_on, measured_on, halves = parts_of(trace, measure_on)
    sends_of(backend or "hierarchical")  # refused before anything is planned
    parsed = [parse_method(name) for name in methods]
    batch_tokens = PREFILL_BATCH if any(is_of_batches(policy) for _, policy in parsed) else None
    planned: PlannedBy = {(method, None): (placement, 0.0) for method, placement in (placements or {}).items()}
    rows: list[ComparisonRow] = []
    refused: list[Refusal] = []
    for name, (method, policy) in zip(methods, parsed, strict=True):
        options = options_of(method, policy, backend)
        key = (method, policy if options_of(method, policy) else None)
        try:
            if key not in planned:
                planned[key] = timed_plan(planned_on, topology, method, seed=seed, **limits, **options)
        except UsageError as error:
            refused.append(Refusal(method=name, error=error))
        else:
            placement, seconds = planned[key]
            serving = serving_of(policy, batch_tokens)
            evaluation = evaluate(placement, measured_on, seed=seed, serving=serving)
            flows = replay_flows(placement, measured_on, serving=serving, seed=seed)[0] if backend else None
            rows.append(ComparisonRow(method=name, plan_seconds=seconds, placement=placement, evaluation=evaluation, flows=flows))
        on_method(name)
    if refused and not rows:
        raise refused[0].error
    return Comparison(
        rows=tuple(rows),
        refused=tuple(refused),
        topology=topology,
        planned_on=planned_on,
        measured_on=measured_on,
        backend=backend,
        halves=halves,
    )


def timed_plan(trace: RoutingTrace, topology: Topology, method: str, **arguments: Any) -> tuple[Placement, float]:
    """`plan`, and the seconds that it took."""
    began = time.perf_counter()
    placement = plan(trace, topology, method, **arguments)
    return placement, time.perf_counter() - began
