"""Several methods on the same requests: plan on one part, measure on another."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grace_moe.choice import BATCH_POLICIES, FIRST_TOKENS
from grace_moe.cost.layer_time import modelled_layer_time
from grace_moe.errors import UsageError
from grace_moe.evaluation.batches import PREFILL_BATCH
from grace_moe.evaluation.replay import Evaluation, evaluate
from grace_moe.placement import Placement, check_same_model
from grace_moe.planning import DEFAULT_METHOD, METHODS, PlanningTask, plan
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace

REQUESTS = "requests"
"""The policy of `grace+requests`: planned for, and measured with, requests placed by their first tokens."""
DECODE_EXPERTS = "decode"
"""The policy of `grace+decode`: planned with replicas of its own for decode, which limit the active experts."""
_PLANNED: dict[str, dict[str, Any]] = {REQUESTS: {"request_placement": True}, DECODE_EXPERTS: {"decode": "experts"}}
"""Policies that are planned for: policy -> options of `grace`."""


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """One method."""

    method: str
    """As it was asked for: METHOD or METHOD+POLICY."""
    plan_seconds: float
    placement: Placement
    evaluation: Evaluation

    def to_dict(self, topology: Topology) -> dict[str, Any]:
        """The row's JSON: the metrics by name, and the modelled time of a layer."""
        modelled = modelled_layer_time(self.evaluation, topology)
        return {"method": self.method, "plan_seconds": round(self.plan_seconds, 3), **self.evaluation.to_dict(), **modelled.to_dict()}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Every method on the same requests."""

    rows: tuple[ComparisonRow, ...]
    topology: Topology
    planned_on: RoutingTrace
    measured_on: RoutingTrace

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `grace-moe compare --json` (DESIGN.md, CLI)."""
        return {
            "rows": [row.to_dict(self.topology) for row in self.rows],
            "topology": self.topology.shape,
            "trace": {"source": self.planned_on.source, "digest": self.planned_on.digest, "tokens": self.planned_on.num_tokens},
            "eval": {"source": self.measured_on.source, "digest": self.measured_on.digest, "tokens": self.measured_on.num_tokens},
        }


def parse_method(name: str) -> tuple[str, str | None]:
    """`eplb+lplb` as method and policy; the policy is None where the placement's own choice is meant.

    Raises:
        UsageError: an unknown method or policy.
    """
    method, plus, policy = name.partition("+")
    if method not in METHODS:
        raise UsageError(f"method {method!r} is unknown; use one of {', '.join(METHODS)}")
    policies = (*BATCH_POLICIES, *_PLANNED) if method == DEFAULT_METHOD else BATCH_POLICIES
    if plus and policy not in policies:
        raise UsageError(f"policy {policy!r} of {name!r} is unknown; use one of {', '.join(policies)}")
    return method, policy if plus else None


def compare(
    trace: RoutingTrace,
    topology: Topology,
    *,
    measure_on: RoutingTrace | None = None,
    methods: Sequence[str] = METHODS,
    redundancy: float | None = None,
    slots_per_device: int | None = None,
    expert_bytes: int | None = None,
    seed: int = 0,
    placements: Mapping[str, Placement] | None = None,
    on_method: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Plan with each method on `trace` and replay `measure_on`.

    Args:
        methods: of `planning.METHODS`; METHOD+POLICY replays the method's placement under one of `planning.BATCH_POLICIES`;
            `grace+requests` plans for request placement, and measures with it; `grace+decode` plans with `decode="experts"`.
            Where a policy for batches or decode is among them, the balance of batches is measured for all.
        measure_on: None = the trace's second half of requests; then only the first half is planned on.
        redundancy, slots_per_device, expert_bytes, seed: of every plan; see `planning.plan`. The seed is the replay's too.
        placements: of methods that are planned already, on the same part: they are measured, and their planning took no time.
        on_method: told the name of each method when it is planned and measured.

    Raises:
        MismatchError: the traces are of different models.
        UsageError: an unknown method or policy, or slots that can't be met.
    """
    planned_on, measured_on = (trace, measure_on) if measure_on is not None else trace.split_requests()
    check_same_model(planned_on, measured_on)
    limits = {"redundancy": redundancy, "slots_per_device": slots_per_device, "expert_bytes": expert_bytes}
    parsed = [parse_method(name) for name in methods]
    batch_tokens = PREFILL_BATCH if any(policy in (*BATCH_POLICIES, DECODE_EXPERTS) for _, policy in parsed) else None
    planned: dict[tuple[str, str | None], tuple[Placement, float]] = {}
    if placements is not None:
        planned = {(method, None): (placement, 0.0) for method, placement in placements.items()}
    rows = []
    for name, (method, policy) in zip(methods, parsed, strict=True):
        key = (method, policy if policy in _PLANNED else None)
        if key not in planned:
            planned[key] = _timed_plan(planned_on, topology, method, seed, limits | _PLANNED.get(policy or "", {}))
        placement, seconds = planned[key]
        evaluation = evaluate(
            placement,
            measured_on,
            seed=seed,
            policy=policy if policy in BATCH_POLICIES else None,
            batch_tokens=batch_tokens,
            first_tokens=FIRST_TOKENS if policy == REQUESTS else None,
        )
        rows.append(ComparisonRow(method=name, plan_seconds=seconds, placement=placement, evaluation=evaluation))
        on_method(name)
    return Comparison(rows=tuple(rows), topology=topology, planned_on=planned_on, measured_on=measured_on)


def over_memory(
    comparison: Comparison,
    redundancies: Sequence[float],
    *,
    method: str = DEFAULT_METHOD,
    expert_bytes: int | None = None,
    seed: int = 0,
    on_budget: Callable[[float], None] = lambda _: None,
) -> tuple[ComparisonRow, ...]:
    """One method under several memory budgets, on the comparison's requests; budgets of the same slots are one row.

    Args:
        redundancies: slots in all over experts; those of as many slots as a row of the comparison take that row.
        expert_bytes, seed: the comparison's own.
        on_budget: told each redundancy when it is planned and measured.

    Returns:
        The rows by ascending memory, the method's own row of the comparison among them.

    Raises:
        UsageError: a redundancy out of range.
    """
    trace, topology = comparison.planned_on, comparison.topology
    rows = {int(row.placement.slots_per_device().max()): row for row in comparison.rows if row.method == method}
    for redundancy in redundancies:
        slots = PlanningTask(trace=trace, topology=topology, seed=seed, redundancy=redundancy, expert_bytes=expert_bytes).equal_slots
        if slots not in rows:
            placement, seconds = _timed_plan(trace, topology, method, seed, {"redundancy": redundancy, "expert_bytes": expert_bytes})
            evaluation = evaluate(placement, comparison.measured_on, seed=seed)
            rows[slots] = ComparisonRow(method=method, plan_seconds=seconds, placement=placement, evaluation=evaluation)
        on_budget(redundancy)
    return tuple(sorted(rows.values(), key=lambda row: row.evaluation.slots_total_over_experts))


def _timed_plan(trace: RoutingTrace, topology: Topology, method: str, seed: int, arguments: dict[str, Any]) -> tuple[Placement, float]:
    began = time.perf_counter()
    placement = plan(trace, topology, method, seed=seed, **arguments)
    return placement, time.perf_counter() - began
