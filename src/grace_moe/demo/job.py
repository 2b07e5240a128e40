"""What `grace-moe demo` does: the whole way, from a model to a measured and verified gain."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from grace_moe.cost.wire import WireFormat
from grace_moe.embedded import embedded_model, embedded_texts
from grace_moe.errors import UsageError, VerificationError
from grace_moe.evaluation import cross_node_bytes, evaluate
from grace_moe.placement import Placement
from grace_moe.planning import plan
from grace_moe.runtime import require_runtime
from grace_moe.runtime.job.folder import job_folder
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace

if TYPE_CHECKING:
    from grace_moe.runtime.job.generation import GenerationOptions, GenerationResult, Request
    from grace_moe.runtime.job.results import RunResult

LOGIT_TOLERANCE = 1e-4
"""Largest difference of a logit (float32) between the ranks and one process."""
METHODS = ("linear", "grace_paper", "grace")
ROWS = (
    ("linear", "vanilla"),
    ("linear", "flat"),
    ("linear", "hierarchical"),
    ("grace_paper", "hierarchical"),
    ("grace", "hierarchical"),
)
"""(method, dispatch) of each row of the table."""
DEVICES = (2, 4, 8, 16)
"""Numbers of local ranks that the demo takes: vanilla expert parallelism needs equal shards."""
BYTES_TOLERANCE = 0.02
"""Largest relative difference between bytes sent and bytes predicted."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Sizes of the demo."""

    topology: str = "2x2"
    """Nodes x devices; every device is a local rank."""
    planning_requests: int = 480
    """Recorded to plan on."""
    requests: int = 48
    """Run to measure on: other text than was planned on."""
    prompt_tokens: int = 64
    """Of every request."""
    new_tokens: int = 16
    """Generated for every request: one by prefill, the rest by decode."""
    seed: int = 0
    """Of planning and replica choice."""


@dataclass(frozen=True, kw_only=True)
class DemoRow:
    """One way of serving the same requests."""

    method: str
    dispatch: str
    cross_node_bytes_per_token: float
    """Counted at the collectives, dispatch and combine, all layers."""
    predicted_cross_node_bytes_per_token: float
    """By replaying the trace of the same tokens."""
    load_max_over_mean: float
    """Pairs computed by the busiest device, over the mean."""
    slots_total_over_experts: float
    """Memory of experts; 1.0 = no replicas."""
    prefill_seconds: float
    decode_seconds_per_step: float
    max_logit_difference: float
    """From the single process, over every new token of every request."""
    same_tokens: bool
    """Whether every request got the single process's tokens."""

    @property
    def lossless(self) -> bool:
        return self.same_tokens and self.max_logit_difference <= LOGIT_TOLERANCE


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """All rows; the first is `linear` with `vanilla`."""

    topology: str
    rows: tuple[DemoRow, ...]
    requests: int
    tokens: int
    seconds: float
    placements: dict[str, Placement] = field(repr=False)
    """By method."""
    planning_trace: RoutingTrace = field(repr=False)
    """What was planned on."""
    measured_trace: RoutingTrace = field(repr=False)
    """The tokens that were run."""

    @property
    def lossless(self) -> bool:
        return all(row.lossless for row in self.rows)

    def row(self, method: str, dispatch: str) -> DemoRow:
        """The row of one method and dispatch."""
        return next(r for r in self.rows if (r.method, r.dispatch) == (method, dispatch))

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `grace-moe demo --json`."""
        return {
            "lossless": self.lossless,
            "topology": self.topology,
            "requests": self.requests,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 1),
            "rows": [asdict(row) for row in self.rows],
        }

    def verify(self) -> None:
        """Raise VerificationError if an output, or a predicted number of bytes, is wrong."""
        for row in self.rows:
            where = f"{row.method} with {row.dispatch} dispatch"
            if not row.lossless:
                raise VerificationError(
                    f"{where}: not lossless: tokens {'equal' if row.same_tokens else 'differ'}, "
                    f"logits differ by {row.max_logit_difference:.1e} (at most {LOGIT_TOLERANCE:.0e}); please report this"
                )
            predicted, measured = row.predicted_cross_node_bytes_per_token, row.cross_node_bytes_per_token
            if abs(predicted - measured) > BYTES_TOLERANCE * max(measured, 1.0):
                raise VerificationError(
                    f"{where}: {measured:.0f} bytes a token crossed nodes, {predicted:.0f} were predicted; please report this"
                )


def run_demo(options: DemoOptions, *, on_status: Callable[[str], None] = lambda _: None) -> DemoResult:
    """Record, plan, run on local ranks, and check every output against one process.

    Args:
        on_status: told what begins, in a few words.
    """
    require_runtime()
    import torch

    from grace_moe.runtime.model.loading import load_whole_model

    topology = Topology.parse(options.topology)
    if topology.num_devices not in DEVICES:
        raise UsageError(
            f"--topology: {topology.shape} has {topology.num_devices} devices; the demo runs {', '.join(map(str, DEVICES))} "
            "processes, over which the 64 experts divide"
        )
    torch.set_num_threads(1)  # so small a model's threads wait for each other longer than they compute
    began = time.monotonic()
    model = load_whole_model(str(embedded_model()))
    planning_requests, requests = _requests(options)
    on_status(f"recording the router's choices on {len(planning_requests)} requests of three domains")
    planning_trace, _ = _record(model, planning_requests, options, "planning")
    placements = {}
    for method in METHODS:
        on_status(f"planning: {method}")
        placements[method] = plan(planning_trace, topology, method=method, seed=options.seed)
    on_status(f"generating on one process, as the reference: {len(requests)} other requests")
    measured_trace, reference = _record(model, requests, options, "measuring")
    results = _run_on_ranks(requests, placements, topology, options, on_status)

    wire = WireFormat(hidden_size=model.config.hidden_size, itemsize=4, top_k=measured_trace.top_k)
    rows = []
    for (method, _), result in zip(ROWS, results, strict=True):
        rows.append(_row(method, result, placements[method], measured_trace, wire, reference.completions, options.seed))
    return DemoResult(
        topology=topology.shape,
        rows=tuple(rows),
        requests=len(requests),
        tokens=results[0].tokens,
        seconds=time.monotonic() - began,
        placements=placements,
        planning_trace=planning_trace,
        measured_trace=measured_trace,
    )


def _record(model: Any, requests: list[Request], options: DemoOptions, purpose: str) -> tuple[RoutingTrace, GenerationResult]:
    """Trace and completions of one process; only what is measured keeps its logits, and goes as one batch."""
    from grace_moe.runtime.job.generation import GenerationOptions
    from grace_moe.runtime.job.recording import record_trace

    short = GenerationOptions(new_tokens=options.new_tokens, batch_size=48, stop_at_eos=False)
    how = short if purpose == "planning" else _measured(options, len(requests))
    return record_trace(model, requests, how, name="embedded OLMoE", dataset=f"prose, code, mathematics: {purpose}")


def _measured(options: DemoOptions, requests: int) -> GenerationOptions:
    from grace_moe.runtime.job.generation import GenerationOptions

    return GenerationOptions(new_tokens=options.new_tokens, batch_size=requests, stop_at_eos=False, keep_logits=True)


def _run_on_ranks(
    requests: list[Request],
    placements: dict[str, Placement],
    topology: Topology,
    options: DemoOptions,
    on_status: Callable[[str], None],
) -> tuple[RunResult, ...]:
    """Every row of the table, one after the other, on the same ranks."""
    from grace_moe.runtime.job.events import Listener
    from grace_moe.runtime.job.job import Job, RunSpec
    from grace_moe.runtime.job.launch import run_local

    with job_folder() as folder:
        for method, placement in placements.items():
            placement.save(folder / f"{method}.json")
        runs = tuple(
            RunSpec(name=f"{method} placement, {dispatch} dispatch", placement=str(folder / f"{method}.json"), dispatch=dispatch)
            for method, dispatch in ROWS
        )
        job = Job(
            model=str(embedded_model()),
            requests=tuple(requests),
            options=_measured(options, len(requests)),
            runs=runs,
            seed=options.seed,
        )
        on_status(f"starting {topology.num_devices} ranks as {topology.shape}")
        told = Listener(on_run=lambda name: on_status(f"running on {topology.num_devices} ranks: {name}"))
        return run_local(job, topology.num_devices, listener=told)


def _requests(options: DemoOptions) -> tuple[list[Request], list[Request]]:
    """Requests to plan on and to measure on: different stretches of each domain's held-out text."""
    from grace_moe.runtime.job.recording import requests_from_text
    from grace_moe.runtime.model.description import load_tokenizer

    tokenizer = load_tokenizer(str(embedded_model()))
    texts = list(embedded_texts().values())
    cut = [text.rfind("\n", 0, int(len(text) * 0.7)) for text in texts]
    plan_on = requests_from_text(
        [t[:c] for t, c in zip(texts, cut, strict=True)],
        tokenizer,
        tokens_per_request=options.prompt_tokens,
        max_requests=options.planning_requests,
    )
    measure_on = requests_from_text(
        [t[c:] for t, c in zip(texts, cut, strict=True)], tokenizer, tokens_per_request=options.prompt_tokens, max_requests=options.requests
    )
    return plan_on, measure_on


def _row(method: str, result: RunResult, placement: Placement, trace: RoutingTrace, wire: WireFormat, reference: Any, seed: int) -> DemoRow:
    evaluation = evaluate(placement, trace, seed=seed)
    predicted = cross_node_bytes(evaluation, wire, result.dispatch, steps=result.passes)
    differences = [float((c.logits - r.logits).abs().max()) for c, r in zip(result.completions, reference, strict=True)]
    return DemoRow(
        method=method,
        dispatch=result.dispatch,
        cross_node_bytes_per_token=result.cross_node_bytes_per_token,
        predicted_cross_node_bytes_per_token=predicted / result.tokens,
        load_max_over_mean=evaluation.load_max_over_mean,
        slots_total_over_experts=evaluation.slots_total_over_experts,
        prefill_seconds=result.prefill_seconds,
        decode_seconds_per_step=result.decode_seconds_per_step,
        max_logit_difference=max(differences),
        same_tokens=all(c.tokens == r.tokens for c, r in zip(result.completions, reference, strict=True)),
    )
