"""A job: one model, some requests, one or more runs (a placement and a dispatch each), measured on every rank."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save

from grace_moe.cost.transport import DISPATCHES
from grace_moe.errors import UsageError
from grace_moe.files import dump_json, write_atomically
from grace_moe.placement import Placement
from grace_moe.runtime.dispatch.rank_groups import RankGroups, make_groups
from grace_moe.runtime.job.generation import Completion, GenerationOptions, GenerationResult, Request, generate
from grace_moe.runtime.job.ranks import TIMEOUT, Membership, agree, rank_device
from grace_moe.runtime.job.routing_log import RoutedTokens, RoutingLog, trace_of_run
from grace_moe.runtime.model.loading import LoadedModel, load_model
from grace_moe.runtime.profiling import Monitor, Span
from grace_moe.trace import RoutingTrace


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One way to run the job."""

    name: str
    placement: str
    """Path of the placement; its topology must have as many devices as there are ranks."""
    dispatch: str
    """One of `wire.DISPATCHES`."""

    def __post_init__(self) -> None:
        if self.dispatch not in DISPATCHES:
            raise UsageError(f"--dispatch: {self.dispatch!r} is unknown; use one of {', '.join(DISPATCHES)}")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all ranks do together. Requests are dealt round-robin over the ranks."""

    model: str
    requests: tuple[Request, ...]
    options: GenerationOptions
    runs: tuple[RunSpec, ...]
    seed: int = 0
    warm_up: bool = True
    """Make one unmeasured batch first."""
    profile: bool = False
    """Time the phases of every MoE layer; not for vanilla dispatch, whose phases are Transformers' own."""
    keep_routing: bool = False
    """Keep what the router chose; not of vanilla dispatch, either."""

    def save(self, path: Path) -> None:
        """Write the job for the ranks of this machine."""
        write_atomically(path, dump_json(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Job:
        """Read what `save` wrote."""
        value = json.loads(path.read_text())
        return cls(
            model=value["model"],
            requests=tuple(Request(request_id=r["request_id"], prompt=tuple(r["prompt"])) for r in value["requests"]),
            options=GenerationOptions(**value["options"]),
            runs=tuple(RunSpec(**r) for r in value["runs"]),
            seed=value["seed"],
            warm_up=value["warm_up"],
            profile=value["profile"],
            keep_routing=value["keep_routing"],
        )


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run, all ranks together."""

    name: str
    dispatch: str
    completions: tuple[Completion, ...]
    """In the order of the job's requests."""
    cross_node_bytes: int
    """Sent between nodes at the collectives, all ranks, dispatch and combine, prefill and decode."""
    intra_node_bytes: int
    """Sent between devices of a node."""
    tokens: int
    """Real tokens that passed each MoE layer, all ranks."""
    passes: int
    """Forward passes of each rank."""
    prefill_seconds: float
    """The slowest rank's."""
    decode_seconds: float
    """The slowest rank's."""
    decode_passes: int
    expert_bytes: tuple[int, ...]
    """Memory of experts, per rank."""
    pass_rows: tuple[int, ...]
    """Rows of each forward pass over all ranks, padding and idle rows included: what `auto` decides by."""
    first_pass: tuple[int, ...]
    """Number of each request's first forward pass, its prefill, in the order of the job's requests."""
    spans: tuple[tuple[Span, ...], ...] = ()
    """Per rank, what a profile timed."""
    routing: RoutingTrace | None = None
    """What the router chose, where it was kept: requests in the order of the job, so that a replay deals them to the same devices."""

    @property
    def cross_node_bytes_per_token(self) -> float:
        """Bytes between nodes per token, summed over the layers."""
        return self.cross_node_bytes / max(1, self.tokens)

    @property
    def decode_seconds_per_step(self) -> float:
        return self.decode_seconds / max(1, self.decode_passes)


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


def execute(job: Job, member: Membership, on_run: Callable[[str], None] | None = None) -> tuple[RunResult, ...]:
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
        mine = [r for i, r in enumerate(job.requests) if i % member.world_size == member.rank]
        share = -(-len(job.requests) // member.world_size)
        batches = -(-share // job.options.batch_size)
        if job.warm_up:
            _generate(loaded, mine[:1], GenerationOptions(new_tokens=2, batch_size=1, stop_at_eos=False), 1)
            loaded.meter.reset()
            if loaded.session is not None:
                loaded.session.restart()
        dist.barrier()
        monitor = Monitor() if job.profile and loaded.session is not None else None
        log = RoutingLog() if job.keep_routing and loaded.session is not None else None
        if loaded.session is not None:
            loaded.session.monitor, loaded.session.log = monitor, log
        result = _generate(loaded, mine, job.options, batches)
        gathered: list[Any] | None = [None] * member.world_size if member.rank == 0 else None
        dist.gather_object(
            (
                result,
                loaded.meter.cross_node_bytes,
                loaded.meter.intra_node_bytes,
                loaded.expert_bytes,
                tuple(monitor.spans) if monitor else (),
                None if log is None else log.tokens(placement.layer_ids),
            ),
            gathered,
        )
        if gathered is not None:
            results.append(_together(job, spec, placement, gathered))
    return tuple(results)


def _generate(loaded: LoadedModel, requests: Sequence[Request], options: GenerationOptions, num_batches: int) -> GenerationResult:
    before = loaded.session.begin_step if loaded.session is not None else None
    return generate(loaded.model, requests, options, num_batches=num_batches, before_step=before, anyone=_anyone)


def _anyone(mine: bool) -> bool:
    """Whether any rank says yes."""
    flag = torch.tensor([int(mine)], device=rank_device())
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag.item())


_Gathered: TypeAlias = tuple[GenerationResult, int, int, int, tuple[Span, ...], RoutedTokens | None]
"""Of one rank: its generation, bytes between and inside nodes, memory of experts, spans and routing."""


def _together(job: Job, spec: RunSpec, placement: Placement, gathered: list[_Gathered]) -> RunResult:
    by_id = {c.request_id: c for result, *_ in gathered for c in result.completions}
    completions = tuple(by_id[r.request_id] for r in job.requests)
    tokens = sum(len(r.prompt) + max(0, len(c.tokens) - 1) for r, c in zip(job.requests, completions, strict=True))
    routed = [g[5] for g in gathered if g[5] is not None]
    routing = None
    if routed:
        ids = [request.request_id for request in job.requests]
        routing = trace_of_run(routed, ids, num_experts=placement.num_experts, layer_ids=placement.layer_ids)
    starts = [0, *accumulate(gathered[0][0].batch_passes)]
    return RunResult(
        name=spec.name,
        dispatch=spec.dispatch,
        completions=completions,
        cross_node_bytes=sum(g[1] for g in gathered),
        intra_node_bytes=sum(g[2] for g in gathered),
        tokens=tokens,
        passes=gathered[0][0].passes,
        prefill_seconds=max(g[0].prefill_seconds for g in gathered),
        decode_seconds=max(g[0].decode_seconds for g in gathered),
        decode_passes=gathered[0][0].decode_passes,
        expert_bytes=tuple(g[3] for g in gathered),
        pass_rows=tuple(map(sum, zip(*(g[0].pass_rows for g in gathered), strict=True))),
        first_pass=tuple(starts[i // len(gathered) // job.options.batch_size] for i in range(len(job.requests))),
        spans=tuple(g[4] for g in gathered) if job.profile else (),
        routing=routing,
    )


def save_results(results: Sequence[RunResult], folder: Path) -> None:
    """Write results for the process that started the ranks: `results.json`, `logits.safetensors`, and a trace of each run's routing."""
    logits = {f"{i}.{c.request_id}": c.logits for i, r in enumerate(results) for c in r.completions if c.logits is not None}
    write_atomically(folder / "logits.safetensors", save(logits))
    plain = []
    for i, result in enumerate(results):
        if result.routing is not None:
            result.routing.save(_routing_file(folder, i))
        value = {k: v for k, v in vars(result).items() if k not in ("completions", "routing")}
        value["spans"] = [[vars(span) for span in spans] for spans in result.spans]
        value["completions"] = [{"request_id": c.request_id, "tokens": list(c.tokens)} for c in result.completions]
        plain.append(value)
    write_atomically(folder / "results.json", dump_json(plain))


def load_results(folder: Path) -> tuple[RunResult, ...]:
    """Read what `save_results` wrote."""
    logits = load_file(folder / "logits.safetensors")
    results = []
    for i, value in enumerate(json.loads((folder / "results.json").read_text())):
        completions = tuple(
            Completion(request_id=c["request_id"], tokens=tuple(c["tokens"]), logits=logits.get(f"{i}.{c['request_id']}"))
            for c in value.pop("completions")
        )
        spans = tuple(tuple(Span(**span) for span in spans) for spans in value.pop("spans"))
        tuples = {name: tuple(value[name]) for name in ("expert_bytes", "pass_rows", "first_pass")}
        routing = RoutingTrace.load(_routing_file(folder, i)) if _routing_file(folder, i).exists() else None
        results.append(RunResult(**{**value, **tuples}, completions=completions, spans=spans, routing=routing))
    return tuple(results)


def _routing_file(folder: Path, run: int) -> Path:
    return folder / f"routing.{run}.safetensors"
