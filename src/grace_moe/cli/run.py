"""`grace-moe run`: generate with experts placed by a plan, on local ranks or under torchrun."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from grace_moe.cli.completions import CompletionPrinter
from grace_moe.cli.options import FiniteRange
from grace_moe.cli.paths import FileCommand, OutputPath
from grace_moe.cli.progress import TokenCount, status_line, status_lines, tell_metrics
from grace_moe.cli.rank_end import end_with
from grace_moe.cli.requests import STANDARD_INPUT, prompt_requests, read_prompts, text_requests, too_long
from grace_moe.cli.run_results import predicted_bytes, show_results
from grace_moe.cost.sent import other_backend
from grace_moe.cost.transport import DISPATCHES
from grace_moe.errors import MismatchError, UsageError, printable
from grace_moe.placement import Placement
from grace_moe.runtime import require_runtime
from grace_moe.runtime.job import TIMEOUT_SECONDS
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace

if TYPE_CHECKING:
    from grace_moe.runtime.job.events import Listener
    from grace_moe.runtime.job.generation import Request
    from grace_moe.runtime.job.job import Job
    from grace_moe.runtime.job.results import RunResult


LONGEST_WAIT_SECONDS = 7 * 86_400
LEAST_TEMPERATURE = 1e-3
"""Below it logits divided by the temperature overflow float32; the likeliest token is drawn long before."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The command line."""

    model: str
    placement_path: Path
    local: str | None
    prompts: tuple[str, ...]
    prompts_path: Path | None
    texts: tuple[Path, ...]
    chat: bool
    requests: int
    prompt_tokens: int
    new_tokens: int
    batch_size: int
    temperature: float
    top_k: int
    top_p: float
    stop: tuple[str, ...]
    ignore_eos: bool
    dtype: str | None
    dispatches: tuple[str, ...]
    profile: Path | None
    predict: bool
    adapt: Path | None
    metrics_port: int | None
    log_path: Path | None
    seed: int
    timeout: float
    as_json: bool

    def check(self) -> None:
        """Raise UsageError where options don't go together."""
        if sum(map(bool, (self.prompts, self.prompts_path, self.texts))) != 1:
            raise UsageError("--prompt, --prompts, --text: give one of the three")
        if self.chat and self.texts:
            raise UsageError("--chat: a piece of --text is no message; give --prompt or --prompts")
        if self.temperature == 0 and (self.top_p < 1 or self.top_k):
            raise UsageError("--top-p, --top-k: nothing is drawn at --temperature 0; give a temperature")
        if 0 < self.temperature < LEAST_TEMPERATURE:
            raise UsageError(f"--temperature: {self.temperature} is under {LEAST_TEMPERATURE}; give 0, which takes the likeliest")
        if "" in self.stop:
            raise UsageError("--stop: an empty text ends nothing; leave it out")
        if self.profile is not None and "vanilla" in self.dispatches:
            raise UsageError("--profile: vanilla's phases are inside Transformers; profile flat or hierarchical")
        if self.predict and set(self.dispatches) == {"vanilla"}:
            raise UsageError("--predict: vanilla's routing is inside Transformers; add another --dispatch, whose routing is the same")
        if self.adapt is not None and "vanilla" in self.dispatches:
            raise UsageError("--adapt: vanilla has no placement, so nothing of it can move; give flat, hierarchical or auto")
        if self.adapt is not None and self.predict:
            raise UsageError("--adapt: --predict replays one placement, and this one changes; leave one of them out")
        if self.adapt is None and (self.metrics_port is not None or self.log_path is not None):
            raise UsageError("--metrics-port, --log: they show what --adapt does; give --adapt TRACE too, or leave them out")
        if self.local is None and os.environ.get("WORLD_SIZE") is None:
            raise UsageError("--local: not given, and this is not a rank of torchrun; give --local NxG")
        if self.local is None and self.prompts_path == STANDARD_INPUT:
            raise UsageError("--prompts: torchrun's ranks have no standard input in common; give a file")


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A job, and what it takes to show its results."""

    job: Job
    placement: Placement
    config: Any
    tokenizer: Any


@click.command(
    cls=FileCommand,
    epilog="""\b
Examples:
  grace-moe run ./OLMoE-1B-7B --placement plan.json --local 2x2 --prompt "The experts"
  grace-moe run ./Qwen3-30B-A3B --placement plan.json --local 2x2 --chat --temperature 0.7 --top-p 0.9 --prompts questions.txt
  grace-moe run ./OLMoE-1B-7B --placement plan.json --local 2x2 --text wiki.txt --dispatch flat --dispatch auto --predict
  grace-moe run ./OLMoE-1B-7B --placement plan.json --local 2x2 --prompts questions.txt --adapt trace.safetensors --metrics-port 9400
  torchrun --nproc-per-node 8 -m grace_moe run ./OLMoE-1B-7B --placement plan.json --text wiki.txt
""",
)
@click.argument("model", type=click.Path())
@click.option("--placement", "placement_path", type=click.Path(path_type=Path), required=True, help="Plan to run by.")
@click.option("--local", metavar="NxG", help="Start N x G ranks on this machine; without it, join torchrun's.")
@click.option("--prompt", "prompts", multiple=True, help="A prompt to complete; repeat for several.")
@click.option("--prompts", "prompts_path", type=click.Path(path_type=Path), help="Prompts to complete, one a line; - = standard input.")
@click.option("--text", "texts", type=click.Path(path_type=Path), multiple=True, help="Cut prompts from this text instead.")
@click.option("--chat", is_flag=True, help="A prompt is a user's message, in the model's chat template.")
@click.option("--requests", type=click.IntRange(min=1), default=32, show_default=True, help="Prompts to cut from the text, at most.")
@click.option("--prompt-tokens", type=click.IntRange(min=1), default=64, show_default=True, help="Tokens of each prompt cut from text.")
@click.option(
    "--new-tokens", type=click.IntRange(min=1), default=16, show_default=True, help="Tokens to generate for each prompt, at most."
)
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Requests in one batch on one rank.")
@click.option("--temperature", type=FiniteRange(min=0), default=0.0, show_default=True, help="Draw tokens; 0 = take the likeliest.")
@click.option("--top-k", type=click.IntRange(min=0), default=0, help="Draw from the likeliest so many; 0 = all.  [default: 0]")
@click.option("--top-p", type=FiniteRange(min=0, max=1), default=1.0, help="Draw from the likeliest of this probability.  [default: 1]")
@click.option("--stop", multiple=True, metavar="TEXT", help="End a completion after this text; repeat for several.")
@click.option("--ignore-eos", is_flag=True, help="Go on after the model's end-of-sequence token (for benchmarks).")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Of weights and hidden states.  [default: the checkpoint's]"
)
@click.option(
    "--dispatch",
    "dispatches",
    type=click.Choice(DISPATCHES),
    multiple=True,
    default=("hierarchical",),
    show_default=True,
    help="How tokens travel; repeat to measure several. vanilla = Transformers' own all-to-all, contiguous; auto = flat if tiny.",
)
@click.option(
    "--profile",
    type=OutputPath(),
    help="Time the phases of every MoE layer; print the breakdown and write a Chrome trace here.",
)
@click.option("--predict", is_flag=True, help="Replay the run's own routing and print the bytes between nodes that it predicts.")
@click.option(
    "--adapt",
    type=click.Path(path_type=Path),
    metavar="TRACE",
    help="Move experts when traffic becomes another than this trace's, which the plan was made on.",
)
@click.option("--metrics-port", type=click.IntRange(0, 65_535), metavar="PORT", help="Serve what --adapt does to Prometheus meanwhile.")
@click.option("--log", "log_path", type=OutputPath(), metavar="FILE", help="Add a JSON line for each decision of --adapt, and each effect.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the replica choice and of the tokens drawn.")
@click.option(
    "--timeout",
    type=FiniteRange(min=1, max=LONGEST_WAIT_SECONDS),
    default=TIMEOUT_SECONDS,
    show_default=True,
    help="Seconds that a rank waits for another.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def run(**values: Any) -> None:
    """Run MODEL with its experts placed by a plan; each rank loads only its own experts."""
    options = RunOptions(**values)
    options.check()
    require_runtime()
    if options.metrics_port is not None:
        from grace_moe.adapt.telemetry import require_metrics

        require_metrics()
    if options.local is None:
        _as_a_rank(options)
    _on_local_ranks(options, options.local)


def _on_local_ranks(options: RunOptions, shape: str) -> None:
    from grace_moe.runtime.job.local_ranks import starting_ranks

    placement = Placement.load(options.placement_path)
    if Topology.parse(shape).shape != placement.topology.shape:
        planned = placement.topology.shape
        raise MismatchError(
            f"--local: {shape} does not match {options.placement_path}, which is planned for {planned}; plan for {shape} or start {planned}"
        )
    num_ranks = placement.topology.num_devices
    with status_line() if options.as_json else status_lines() as tell:
        tell(f"starting {num_ranks} ranks")
        with starting_ranks(num_ranks) as ranks:  # they import while this process does
            from grace_moe.runtime.job.launch import run_on

            prepared = _prepare(options, placement)
            printer = _printer(options, prepared)
            listener = _listener(prepared.job, tell, printer, f"on {num_ranks} ranks", len(prepared.job.requests))
            results = run_on(ranks, prepared.job, listener)
    _show(options, prepared, results)


def _as_a_rank(options: RunOptions) -> NoReturn:
    """Do the job as one of torchrun's ranks; the process ends here. Whatever is wrong is found after the ranks joined, and said once."""
    from grace_moe.runtime.job.events import SILENT
    from grace_moe.runtime.job.on_rank import run_on_rank
    from grace_moe.runtime.job.ranks import joined, leave

    member = None
    try:
        with joined(timeout=timedelta(seconds=options.timeout)) as member, status_lines() as tell:
            prepared = _prepare(options, Placement.load(options.placement_path), warn=member.rank == 0)
            share = -(-len(prepared.job.requests) // member.world_size)
            listener = _listener(prepared.job, tell, None, "as rank 0 of torchrun's", share) if member.rank == 0 else SILENT
            results = run_on_rank(prepared.job, member, listener)
        if results:  # rank 0 alone has them
            if (printer := _printer(options, prepared)) is not None:
                printer.add_whole(results[0].completions)
            _show(options, prepared, results)
    except Exception as error:
        end_with(error, member)
    leave(0)


def _prepare(options: RunOptions, placement: Placement, *, warn: bool = True) -> _Prepared:
    """Read what the job needs of the model's folder and of the prompts."""
    from grace_moe.runtime.job.choosing import Sampling
    from grace_moe.runtime.job.generation import GenerationOptions
    from grace_moe.runtime.job.job import Job, RunSpec
    from grace_moe.runtime.model.description import checkpoint_dtype, load_config, load_tokenizer

    config, tokenizer = load_config(options.model), load_tokenizer(options.model)
    requests = _requests(options, tokenizer)
    warning = too_long(requests, options.new_tokens, config)
    if warn and warning is not None:
        click.echo(printable(f"warning: {options.model}: {warning}"), err=True)
    if options.adapt is not None:
        _check_trace(RoutingTrace.load(options.adapt), placement, options)
    if warn:
        _tell_other_backends(options, placement)
    job = Job(
        model=options.model,
        requests=requests,
        options=GenerationOptions(
            new_tokens=options.new_tokens,
            batch_size=options.batch_size,
            stop_at_eos=not options.ignore_eos,
            sampling=Sampling(temperature=options.temperature, top_k=options.top_k, top_p=options.top_p, seed=options.seed),
            stop_strings=options.stop,
        ),
        runs=tuple(RunSpec(name=d, placement=str(options.placement_path), dispatch=d) for d in options.dispatches),
        seed=options.seed,
        dtype=options.dtype or checkpoint_dtype(config),
        timeout_seconds=options.timeout,
        profile=options.profile is not None,
        keep_routing=options.predict,
        adapt="" if options.adapt is None else str(options.adapt),
        metrics_port=options.metrics_port,
        adapt_log="" if options.log_path is None else str(options.log_path),
    )
    return _Prepared(job=job, placement=placement, config=config, tokenizer=tokenizer)


def _check_trace(trace: RoutingTrace, placement: Placement, options: RunOptions) -> None:
    """Before anything is loaded. Raises MismatchError where the trace is not of the plan's model."""
    if (trace.layer_ids, trace.num_experts) != (placement.layer_ids, placement.num_experts):
        raise MismatchError(f"--adapt: {options.adapt} has other layers or experts than {options.placement_path}; give its own trace")


def _tell_other_backends(options: RunOptions, placement: Placement) -> None:
    """Note where the plan was made for what another dispatch sends; vanilla does not use it, and auto takes either way."""
    for dispatch in options.dispatches:
        if dispatch in ("flat", "hierarchical") and (note := other_backend(placement, dispatch)) is not None:
            click.echo(printable(f"note: {options.placement_path}: {note}"), err=True)


def _requests(options: RunOptions, tokenizer: Any) -> tuple[Request, ...]:
    if options.texts:
        return text_requests(options.texts, tokenizer, prompt_tokens=options.prompt_tokens, requests=options.requests)
    prompts = options.prompts or read_prompts(options.prompts_path or STANDARD_INPUT)
    return prompt_requests(prompts, tokenizer, chat=options.chat)


def _printer(options: RunOptions, prepared: _Prepared) -> CompletionPrinter | None:
    """Prints completions, where no JSON does."""
    if options.as_json:
        return None
    return CompletionPrinter(prepared.job.requests, prepared.tokenizer, from_text=bool(options.texts))


def _listener(job: Job, tell: Callable[[str], None], printer: CompletionPrinter | None, where: str, num_requests: int) -> Listener:
    """Says what is going on; the completions of the first run are printed as they come."""
    from grace_moe.runtime.job.events import Listener, Said

    count = TokenCount(tell, total=num_requests * job.options.new_tokens)

    def on_run(name: str) -> None:
        tell(f"running {where}: {name}")
        count.restart(name)

    def on_tokens(said: Sequence[Said]) -> None:
        if printer is not None and count.runs == 1:
            printer.add(said)
        count.add(len(said), quiet=printer is not None and printer.in_a_line and os.path.sameopenfile(1, 2))

    return Listener(on_run=on_run, on_tokens=on_tokens, on_metrics=tell_metrics)


def _show(options: RunOptions, prepared: _Prepared, results: tuple[RunResult, ...]) -> None:
    predicted = predicted_bytes(results, prepared.placement, prepared.config, prepared.job) if options.predict else {}
    show_results(results, predicted, prepared.tokenizer, profile=options.profile, as_json=options.as_json)
