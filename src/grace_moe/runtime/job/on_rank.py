"""A job on one rank: load, agree with the others, generate, and tell rank 0 what was measured."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
import torch.distributed as dist

from grace_moe.placement import Placement
from grace_moe.runtime.dispatch.rank_groups import RankGroups, make_groups, rank_device
from grace_moe.runtime.job.generation import GenerationOptions, GenerationResult, Request, generate
from grace_moe.runtime.job.job import Job, RunSpec
from grace_moe.runtime.job.ranks import TIMEOUT, Membership, agree
from grace_moe.runtime.job.results import RunResult
from grace_moe.runtime.model.loading import LoadedModel, load_model
from grace_moe.runtime.model.routing_log import RoutedTokens, RoutingLog, trace_of_run
from grace_moe.runtime.profiling import Profiler, Span


@dataclass(frozen=True, kw_only=True)
class _RankReport:
    """What one rank tells rank 0 of a run."""

    generation: GenerationResult
    cross_node_bytes: int
    intra_node_bytes: int
    expert_bytes: int
    spans: tuple[Span, ...]
    routed: RoutedTokens | None


def run_on_rank(job: Job, member: Membership, on_run: Callable[[str], None] | None = None) -> tuple[RunResult, ...]:
    """Do the job on this rank; rank 0 returns the results, the others an empty tuple. Collective."""
    results = []
    groups: RankGroups | None = None
    for spec in job.runs:
        if on_run is not None and member.rank == 0:
            on_run(spec.name)
        placement = Placement.load(spec.placement)
        agree(member, _facts(job, spec))
        if groups is None or groups.topology != placement.topology:
            groups = make_groups(placement.topology, TIMEOUT)
        loaded = load_model(job.model, placement, groups, dispatch=spec.dispatch, seed=job.seed)
        agree(member, {"dtype": str(next(loaded.model.parameters()).dtype)})
        reports = _gather(_run(job, loaded, placement, member), member)
        if reports:
            results.append(_together(job, spec, placement, reports))
    return tuple(results)


def _run(job: Job, loaded: LoadedModel, placement: Placement, member: Membership) -> _RankReport:
    """Generate for this rank's requests, as often as the rank with the most."""
    mine = [r for i, r in enumerate(job.requests) if i % member.world_size == member.rank]
    share = -(-len(job.requests) // member.world_size)
    if job.warm_up:
        _generate(loaded, mine[:1], GenerationOptions(new_tokens=2, batch_size=1, stop_at_eos=False), 1)
        loaded.meter.reset()
        if loaded.session is not None:
            loaded.session.restart()
    dist.barrier()
    profiler = Profiler() if job.profile and loaded.session is not None else None
    log = RoutingLog() if job.keep_routing and loaded.session is not None else None
    if loaded.session is not None:
        loaded.session.profiler, loaded.session.log = profiler, log
    generation = _generate(loaded, mine, job.options, -(-share // job.options.batch_size))
    return _RankReport(
        generation=generation,
        cross_node_bytes=loaded.meter.cross_node_bytes,
        intra_node_bytes=loaded.meter.intra_node_bytes,
        expert_bytes=loaded.expert_bytes,
        spans=tuple(profiler.spans) if profiler else (),
        routed=None if log is None else log.tokens(placement.layer_ids),
    )


def _gather(report: _RankReport, member: Membership) -> list[_RankReport]:
    """Every rank's report on rank 0, nothing on the others. Collective."""
    gathered: list[_RankReport] = [report] * member.world_size if member.rank == 0 else []
    dist.gather_object(report, gathered or None)
    return gathered


def _generate(loaded: LoadedModel, requests: Sequence[Request], options: GenerationOptions, num_batches: int) -> GenerationResult:
    before = loaded.session.begin_step if loaded.session is not None else None
    return generate(loaded.model, requests, options, num_batches=num_batches, before_step=before, anyone=_anyone)


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
    )
