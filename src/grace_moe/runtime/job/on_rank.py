"""A job on one rank: load, agree with the others, generate, and tell rank 0 what was measured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from grace_moe.placement import Placement
from grace_moe.runtime.dispatch.rank_groups import RankGroups, make_groups, rank_device
from grace_moe.runtime.job.events import SILENT, Listener
from grace_moe.runtime.job.generation import GenerationOptions, GenerationResult, generate
from grace_moe.runtime.job.job import Job, RunSpec
from grace_moe.runtime.job.ranks import Membership, agree
from grace_moe.runtime.job.results import RunResult
from grace_moe.runtime.model.description import load_tokenizer
from grace_moe.runtime.model.loading import LoadedModel, load_model
from grace_moe.runtime.model.routing_log import RoutedTokens, RoutingLog, trace_of_run
from grace_moe.runtime.profiling import Profiler, Span
from grace_moe.trace import RoutingTrace

if TYPE_CHECKING:
    from grace_moe.adapt import AdaptStatus
    from grace_moe.runtime.migration.adaptation import Adaptation

VIEW_EVERY = 10
"""Steps between two views of traffic, for metrics."""


@dataclass(frozen=True, kw_only=True)
class _RankReport:
    """What one rank tells rank 0 of a run."""

    generation: GenerationResult
    cross_node_bytes: int
    intra_node_bytes: int
    expert_bytes: int
    spans: tuple[Span, ...]
    routed: RoutedTokens | None
    adapt: AdaptStatus | None


def run_on_rank(job: Job, member: Membership, listener: Listener = SILENT) -> tuple[RunResult, ...]:
    """Do the job on this rank; rank 0 returns the results, the others an empty tuple. Collective.

    Args:
        listener: told of this rank's tokens; rank 0's of the runs, too.
    """
    results = []
    groups: RankGroups | None = None
    tokenizer = load_tokenizer(job.model) if job.options.stop_strings else None
    for spec in job.runs:
        if member.rank == 0:
            listener.on_run(spec.name)
        placement = Placement.load(spec.placement)
        agree(member, _facts(job, spec))
        if groups is None or groups.topology != placement.topology:
            groups = make_groups(placement.topology, timedelta(seconds=job.timeout_seconds))
        dtype, may_move = getattr(torch, job.dtype), bool(job.adapt)
        loaded = load_model(job.model, placement, groups, dispatch=spec.dispatch, dtype=dtype, seed=job.seed, equal_slots=may_move)
        generation, adapt = _generate(job, loaded, member, tokenizer, listener)
        reports = _gather(_report(loaded, placement, generation, adapt), member)
        if reports:
            results.append(_together(job, spec, placement, reports))
    return tuple(results)


def _generate(
    job: Job, loaded: LoadedModel, member: Membership, tokenizer: Any, listener: Listener
) -> tuple[GenerationResult, AdaptStatus | None]:
    """Generate for this rank's requests, as often as the rank with the most; how adaptation went, where experts can move. Collective."""
    mine = [r for i, r in enumerate(job.requests) if i % member.world_size == member.rank]
    share = -(-len(job.requests) // member.world_size)
    session = loaded.session
    for_all = partial(generate, loaded.model, anyone=_anyone)
    before_step = None if session is None else session.begin_step
    if job.warm_up:
        warm_up = GenerationOptions(new_tokens=2, batch_size=1, stop_at_eos=False)
        for_all(mine[:1], warm_up, num_batches=1, before_step=before_step)
        loaded.meter.reset()
        if session is not None:
            session.restart()
    dist.barrier()
    if session is not None:
        session.profiler = Profiler() if job.profile else None
        session.log = RoutingLog() if job.keep_routing else None
    num_batches = -(-share // job.options.batch_size)
    for_all = partial(for_all, mine, job.options, num_batches=num_batches, tokenizer=tokenizer, on_tokens=listener.on_tokens)
    if not job.adapt:
        return for_all(before_step=before_step), None
    with _adapting(job, loaded, member, listener) as adaptation:
        return for_all(before_step=adaptation.begin_step), adaptation.status


@contextmanager
def _adapting(job: Job, loaded: LoadedModel, member: Membership, listener: Listener) -> Iterator[Adaptation]:
    """Let experts move, and serve metrics of it on rank 0 where the job asks for them. Collective."""
    from grace_moe.adapt.telemetry import MetricsServer
    from grace_moe.runtime.migration.adaptation import AdaptingOptions, adapting, copy_bytes, policy_of

    view_every = 0 if job.metrics_port is None else VIEW_EVERY
    log = Path(job.adapt_log) if job.adapt_log else None
    options = AdaptingOptions(policy=policy_of(loaded), timeout_seconds=job.timeout_seconds, view_every=view_every, log=log)
    with adapting(loaded, RoutingTrace.load(job.adapt), options=options, seed=job.seed) as adaptation:
        if job.metrics_port is None or member.rank != 0:
            yield adaptation
            return
        server = MetricsServer(lambda: adaptation.status, lambda: adaptation.view, copy_bytes=copy_bytes(loaded), port=job.metrics_port)
        with closing(server):
            listener.on_metrics(server.port)
            yield adaptation


def _report(loaded: LoadedModel, placement: Placement, generation: GenerationResult, adapt: AdaptStatus | None) -> _RankReport:
    profiler, log = (None, None) if loaded.session is None else (loaded.session.profiler, loaded.session.log)
    return _RankReport(
        generation=generation,
        cross_node_bytes=loaded.meter.cross_node_bytes,
        intra_node_bytes=loaded.meter.intra_node_bytes,
        expert_bytes=loaded.expert_bytes,
        spans=() if profiler is None else tuple(profiler.spans),
        routed=None if log is None else log.tokens(placement.layer_ids),
        adapt=adapt,
    )


def _gather(report: _RankReport, member: Membership) -> list[_RankReport]:
    """Every rank's report on rank 0, nothing on the others. Collective."""
    gathered: list[_RankReport] = [report] * member.world_size if member.rank == 0 else []
    dist.gather_object(report, gathered or None)
    return gathered


def _anyone(mine: bool) -> bool:
    """Whether any rank says yes."""
    flag = torch.tensor([int(mine)], device=rank_device())
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag.item())


def _facts(job: Job, spec: RunSpec) -> dict[str, str]:
    """What must be alike on all ranks, short enough to show. Contents count: paths may differ from machine to machine."""

    def digest(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()[:12]

    config = Path(job.model) / "config.json"
    return {
        "--placement": f"SHA-256 {digest(Path(spec.placement).read_bytes())}",
        "--dispatch": spec.dispatch,
        "model": f"config.json SHA-256 {digest(config.read_bytes())}" if config.is_file() else job.model,
        "requests": f"{len(job.requests)} (SHA-256 {digest(repr(job.requests).encode())})",
        "options": repr(job.options),
        "seed": str(job.seed),
        "--dtype": job.dtype,
        "--adapt": f"SHA-256 {digest(Path(job.adapt).read_bytes())}" if job.adapt else "none",
    }


def _together(job: Job, spec: RunSpec, placement: Placement, reports: Sequence[_RankReport]) -> RunResult:
    """One run over all ranks."""
    made = [report.generation for report in reports]
    by_id = {c.request_id: c for generation in made for c in generation.completions}
    completions = tuple(by_id[r.request_id] for r in job.requests)
    routed = [report.routed for report in reports if report.routed is not None]
    routing = None
    if routed:
        ids = [request.request_id for request in job.requests]
        routing = trace_of_run(routed, ids, num_experts=placement.num_experts, layer_ids=placement.layer_ids)
    starts = [0, *accumulate(made[0].batch_passes)]
    return RunResult(
        name=spec.name,
        dispatch=spec.dispatch,
        completions=completions,
        cross_node_bytes=sum(report.cross_node_bytes for report in reports),
        intra_node_bytes=sum(report.intra_node_bytes for report in reports),
        tokens=sum(len(r.prompt) + max(0, len(c.tokens) - 1) for r, c in zip(job.requests, completions, strict=True)),
        passes=made[0].passes,
        prefill_seconds=max(generation.prefill_seconds for generation in made),
        decode_seconds=max(generation.decode_seconds for generation in made),
        decode_passes=made[0].decode_passes,
        expert_bytes=tuple(report.expert_bytes for report in reports),
        pass_rows=tuple(map(sum, zip(*(generation.pass_rows for generation in made), strict=True))),
        first_pass=tuple(starts[i // len(reports) // job.options.batch_size] for i in range(len(job.requests))),
        spans=tuple(report.spans for report in reports) if job.profile else (),
        routing=routing,
        adapt=reports[0].adapt,
    )
