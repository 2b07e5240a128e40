"""`diagnose`: is balancing worth it for this trace, model and cluster? A verdict first, in milliseconds (docs/cost.md#diagnose)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from grace_moe.cost.flows import Flows, total
from grace_moe.cost.layer_time import LayerTime, mean_time
from grace_moe.cost.step import Setting, step_time
from grace_moe.errors import MismatchError, UsageError
from grace_moe.evaluation.compare import SlotLimits
from grace_moe.evaluation.flows import replay_flows
from grace_moe.evaluation.halves import unlike_halves
from grace_moe.placement import Placement, check_same_model
from grace_moe.planning import plan
from grace_moe.topology import Topology
from grace_moe.trace import LoadProfile, RoutingTrace, order_of_requests, tokens_of

Floats = npt.NDArray[np.float64]

WORTH_IT, NOT_WORTH_IT, NOT_ENOUGH = "worth it", "not worth it", "not enough evidence"
LEAST_GAIN = 0.03
"""Share of a layer's time from which a plan is worth having, unless said otherwise."""
PARTS = 20
"""That requests are dealt into, to be drawn again."""
FEWEST_PARTS = 8
FEWEST_REQUESTS = 8
"""To be measured on: with fewer, nothing is said."""
DRAWS = 200
SURE = 0.975
"""Share of the draws that must save enough for a plan to be worth it, and"""
LIKELY = 0.8
"""that must save less for it not to be: to leave a small gain costs less than to promise one that is not there."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Whether a plan is worth it."""

    verdict: str
    """`WORTH_IT`, `NOT_WORTH_IT` or `NOT_ENOUGH`."""
    reason: str
    """In a sentence."""
    next_command: str
    now: LayerTime | None
    planned: LayerTime | None
    """Of a layer; None where nothing could be measured."""
    saved: tuple[float, float]
    """95% interval of the seconds that a layer is shorter by, over requests drawn again."""
    memory_bytes: float
    """That the plan's replicas take, in all devices and layers."""
    layers: int
    setting: Setting
    told: str
    """What was assumed."""
    plans: tuple[Placement, ...] = ()
    """What was judged: one for each half that was planned on."""
    notes: tuple[str, ...] = ()
    """What to know of the trace's halves."""

    @property
    def gain(self) -> float:
        """Share of a layer's time that the plan saves."""
        return 0.0 if self.now is None or self.planned is None or not self.now.total else 1 - self.planned.total / self.now.total

    def per_token(self, layer_seconds: float) -> float:
        """Seconds that all MoE layers add to a token: a decode step's for every token in it, a prefill batch's over its tokens."""
        step = layer_seconds * self.layers
        return step if self.setting.phase == "decode" else step / self.setting.batch

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `grace-moe diagnose --json`."""
        now, planned = (None if time is None else time.total for time in (self.now, self.planned))
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "milliseconds_per_layer": {
                "now": _ms(now),
                "planned": _ms(planned),
                "interval": [_ms(seconds) for seconds in self.saved],
                "parts": {name: _parts(time) for name, time in (("now", self.now), ("planned", self.planned)) if time is not None},
            },
            "milliseconds_per_token": {
                name: None if seconds is None else _ms(self.per_token(seconds)) for name, seconds in (("now", now), ("planned", planned))
            },
            "memory_gb": round(self.memory_bytes / 1e9, 3),
            "gain": round(self.gain, 4),
            "assumed": self.told,
            "next": self.next_command,
            **({"notes": list(self.notes)} if self.notes else {}),
        }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 6)


def _parts(time: LayerTime) -> dict[str, float | None]:
    return {name: _ms(getattr(time, name)) for name in ("dispatch", "compute", "combine", "idle", "hidden")}


def diagnose(
    trace: RoutingTrace | LoadProfile,
    topology: Topology,
    setting: Setting,
    *,
    measure_on: RoutingTrace | None = None,
    now: Placement | None = None,
    candidates: Sequence[Placement] = (),
    least_gain: float = LEAST_GAIN,
    seed: int = 0,
    **limits: Unpack[SlotLimits],
) -> Diagnosis:
    """Plan on half of the requests, replay the others under what is now and under the plan, and say which is the case.

    Without plans that were made elsewhere, the halves change places as well, and both count: every request is evidence.

    Requests are drawn again many times. A plan is worth it where it saves at least `least_gain` of a layer's time in nearly all draws
    (`SURE`), and not worth it where it saves less in most (`LIKELY`). In between, or with too few requests, the trace doesn't tell.

    Args:
        measure_on: what is replayed, and the whole of `trace` is planned on; None = the trace's halves (`RoutingTrace.split_requests`).
        now: the placement in use; None = experts in order, without replicas.
        candidates: plans made on what is planned on; none = `grace`'s, and EPLB's without replicas. The one that is fastest there
            is judged.
        least_gain: share of a layer's time.
        limits: of the plan's slots.

    Raises:
        UsageError: a gain that is no share, or limits that no plan can keep.
        MismatchError: trace, placement and topology don't belong together.
    """
    if not 0 <= least_gain < 1:
        raise UsageError(f"least gain {least_gain} is not a share from 0 to 1; give 0.03 for 3%")
    for placement in (*candidates, *(() if now is None else (now,))):
        _check(placement, trace, topology)
    told = setting.told(topology)
    if isinstance(trace, LoadProfile):
        return _unknown("the trace holds counts of experts, and doesn't tell what a token costs", trace, setting, told)
    if trace.surrogate:
        raise MismatchError(f"{trace.source}: a surrogate, drawn to match counts of pairs; diagnose a trace of tokens")
    sides = _sides(trace, measure_on, both=not candidates)
    check_same_model(*sides[0])
    requests = min(_requests(measured, setting.phase) for _, measured in sides)
    if requests < FEWEST_REQUESTS:
        few = f"{requests} request{'s' * (requests != 1)} to measure {setting.phase} on; {FEWEST_REQUESTS} are the fewest"
        return _unknown(few, trace, setting, told)
    before = [plan(planned, topology, "linear", seed=seed) if now is None else now for planned, _ in sides]
    plans = [candidates or _candidates(planned, topology, seed, limits) for planned, _ in sides]
    after = _fastest(plans, sides, topology, setting, seed)
    parts = _rounds(requests, topology)
    flows = [
        [replay_flows(p, measured, topology, parts=parts, phase=setting.phase, seed=seed) for p in both]
        for both, (_, measured) in zip(zip(before, after, strict=True), sides, strict=True)
    ]
    times = [mean_time([_whole_time(both[which], topology, setting) for both in flows]) for which in (0, 1)]
    draws = np.mean([_drawn(both[0], both[1], topology, setting, seed + side) for side, both in enumerate(flows)], axis=0)
    draws += times[0].total - times[1].total - draws.mean()  # drawing again makes every load more uneven: only its spread counts
    slots = [np.mean([p.slots_per_device().sum() for p in placements]) for placements in (before, after)]
    memory = float(slots[1] - slots[0]) * setting.model.expert_bytes
    found = _judged(times, draws, memory, least_gain, trace, setting, told)
    notes = unlike_halves(*sides[0]) if measure_on is None else ()
    return replace(found, plans=tuple(after), next_command=_next(found.verdict, after[0], trace, setting), notes=notes)


def _sides(trace: RoutingTrace, measure_on: RoutingTrace | None, *, both: bool) -> list[tuple[RoutingTrace, RoutingTrace]]:
    """What is planned on and what is measured on; `both`: every half is each in turn, so that all requests are measured on."""
    if measure_on is not None:
        return [(trace, measure_on)]
    first, second = trace.split_requests()
    return [(first, second), (second, first)] if both else [(first, second)]


def _candidates(trace: RoutingTrace, topology: Topology, seed: int, limits: SlotLimits) -> list[Placement]:
    """`grace`'s plan, and EPLB's without replicas."""
    return [plan(trace, topology, "grace", seed=seed, **limits), *_without_replicas(trace, topology, seed)]


def _fastest(
    plans: Sequence[Sequence[Placement]],
    sides: Sequence[tuple[RoutingTrace, RoutingTrace]],
    topology: Topology,
    setting: Setting,
    seed: int,
) -> list[Placement]:
    """Of the ways to plan the one that is fastest on what was planned on: its plan for each side."""
    ways = [list(way) for way in zip(*plans, strict=True)]
    if len(ways) == 1:
        return ways[0]

    def seconds(way: Sequence[Placement]) -> float:
        replays = [replay_flows(p, planned, topology, phase=setting.phase, seed=seed) for p, (planned, _) in zip(way, sides, strict=True)]
        return sum(_whole_time(parts, topology, setting).total for parts in replays)

    return min(ways, key=seconds)


def _whole_time(parts: list[Flows], topology: Topology, setting: Setting) -> LayerTime:
    """Of all parts together."""
    return step_time(total(parts, np.ones(len(parts)).tolist()), topology, setting)


def _without_replicas(trace: RoutingTrace, topology: Topology, seed: int) -> list[Placement]:
    """EPLB's plan where there are as many experts as devices at least: a replica is one more expert to read in small batches."""
    return [plan(trace, topology, "eplb", seed=seed, redundancy=1.0)] if trace.num_experts % topology.num_devices == 0 else []


def _check(placement: Placement, trace: RoutingTrace | LoadProfile, topology: Topology) -> None:
    """Raise MismatchError unless they belong together."""
    check_same_model(placement, trace)
    if placement.topology.shape != topology.shape:
        shape = placement.topology.shape
        raise MismatchError(f"{placement.source}: planned for {shape}, but {topology.source} is {topology.shape}; plan again")


def _requests(trace: RoutingTrace, phase: str) -> int:
    """Requests with tokens of a phase."""
    return len(np.unique(order_of_requests(trace)[0][tokens_of(trace, phase)]))


def _rounds(requests: int, topology: Topology) -> int:
    """Whole rounds over the devices, where there are enough of them: a part that some devices send nothing of makes every draw uneven."""
    rounds = requests // topology.num_devices
    return min(PARTS, rounds if rounds >= FEWEST_PARTS else requests)


def _drawn(now: list[Flows], planned: list[Flows], topology: Topology, setting: Setting, seed: int) -> Floats:
    """`[DRAWS]` seconds saved in a layer, parts of the requests drawn with replacement, the same for both."""
    generator = np.random.default_rng(seed)
    saved = np.empty(DRAWS)
    for draw in range(DRAWS):
        weights = np.bincount(generator.integers(len(now), size=len(now)), minlength=len(now)).tolist()
        saved[draw] = step_time(total(now, weights), topology, setting).total - step_time(total(planned, weights), topology, setting).total
    return saved


def _judged(
    times: list[LayerTime],
    draws: Floats,
    memory_bytes: float,
    least_gain: float,
    trace: RoutingTrace,
    setting: Setting,
    told: str,
) -> Diagnosis:
    now, planned = times
    least = least_gain * now.total
    enough = float(np.mean(draws >= least))
    verdict = WORTH_IT if enough >= SURE else NOT_WORTH_IT if enough <= 1 - LIKELY else NOT_ENOUGH
    low, high = np.quantile(draws, (1 - SURE, SURE))
    saved = float(low), float(high)
    return Diagnosis(
        verdict=verdict,
        reason=_reason(verdict, now, planned, saved, setting),
        next_command="",
        now=now,
        planned=planned,
        saved=saved,
        memory_bytes=memory_bytes,
        layers=trace.num_layers,
        setting=setting,
        told=told,
    )


def _unknown(reason: str, trace: RoutingTrace | LoadProfile, setting: Setting, told: str) -> Diagnosis:
    return Diagnosis(
        verdict=NOT_ENOUGH,
        reason=reason,
        next_command="grace-moe record MODEL --text FILE... -o TRACE   # or import an engine's record of tokens",
        now=None,
        planned=None,
        saved=(0.0, 0.0),
        memory_bytes=0.0,
        layers=trace.num_layers,
        setting=setting,
        told=told,
    )


def _reason(verdict: str, now: LayerTime, planned: LayerTime, saved: tuple[float, float], setting: Setting) -> str:
    """What a layer's time is made of, and what the plan changes of it."""
    shares = {
        "dispatch and combine take": now.dispatch + now.combine,
        "computing takes" if setting.phase == "prefill" else "reading weights and computing takes": now.compute,
        "waiting for the busiest device takes": now.idle,
    }
    most, seconds = max(shares.items(), key=lambda item: item[1])
    whole = now.total + now.hidden
    saves = 1 - planned.total / now.total
    text = f"{setting.phase} of {setting.batch:,} tokens: {most} {seconds / whole:.0%} of a layer; the plan saves {saves:.1%}"
    if verdict == NOT_ENOUGH:
        low, high = (part / now.total for part in saved)
        return f"{text}, and other requests could make it {low:.1%} to {high:.1%}"
    where = {"dispatch and combine": now.dispatch + now.combine - planned.dispatch - planned.combine, "waiting": now.idle - planned.idle}
    name, less = max(where.items(), key=lambda item: item[1])
    return text if less <= 0 else f"{text}, most of it of {name}"


def _next(verdict: str, planned: Placement, trace: RoutingTrace, setting: Setting) -> str:
    """The command to go on with."""
    if verdict == WORTH_IT:
        method, slots = planned.provenance.get("method", "grace"), int(planned.slots_per_device().max())
        options = "" if method == "grace" else f" --method {method}"
        options += f" --slots-per-device {slots}"
        return f"grace-moe plan {trace.source} --topology {planned.topology.source}{options} -o plan.json"
    if verdict == NOT_WORTH_IT:
        where = f"{trace.source} --topology {planned.topology.source} --phase {setting.phase}"
        return f"grace-moe size {where}   # from which batch or cluster on it is"
    return "grace-moe record MODEL --text FILE... -o TRACE   # more requests, or longer ones"
