"""`grace-moe run`: generate with experts placed by a plan, on local ranks or under torchrun."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from grace_moe.cli.options import read_text
from grace_moe.cli.output import say, show_json
from grace_moe.cli.paths import FileCommand, OutputPath
from grace_moe.cli.progress import status_line
from grace_moe.cost.sent import SENDS, other_backend
from grace_moe.cost.transport import DISPATCHES
from grace_moe.cost.wire import WireFormat
from grace_moe.errors import GraceError, MismatchError, UsageError, printable
from grace_moe.evaluation import cross_node_bytes, evaluate, passes_of_tokens
from grace_moe.files import write_atomically
from grace_moe.placement import Placement
from grace_moe.runtime import require_runtime
from grace_moe.topology import Topology

if TYPE_CHECKING:
    from grace_moe.runtime.job.generation import Request
    from grace_moe.runtime.job.job import Job
    from grace_moe.runtime.job.results import RunResult

FLOAT32_BYTES = 4
"""`run` loads models in float32."""


@click.command(
    cls=FileCommand,
    epilog="""\b
Examples:
  grace-moe run ./OLMoE-1B-7B --placement plan.json --local 2x2 --prompt "The experts"
  grace-moe run ./OLMoE-1B-7B --placement plan.json --local 2x2 --text wiki.txt --dispatch flat --dispatch auto --predict
  torchrun --nproc-per-node 8 -m grace_moe run ./OLMoE-1B-7B --placement plan.json --text wiki.txt
""",
)
@click.argument("model", type=click.Path())
@click.option("--placement", "placement_path", type=click.Path(path_type=Path), required=True, help="Plan to run by.")
@click.option("--local", metavar="NxG", help="Start N x G ranks on this machine; without it, join torchrun's.")
@click.option("--prompt", "prompts", multiple=True, help="A prompt to complete; repeat for several.")
@click.option("--text", "texts", type=click.Path(path_type=Path), multiple=True, help="Cut prompts from this text instead.")
@click.option("--requests", type=click.IntRange(min=1), default=32, show_default=True, help="Prompts to cut from the text, at most.")
@click.option("--prompt-tokens", type=click.IntRange(min=1), default=64, show_default=True, help="Tokens of each prompt cut from text.")
@click.option("--new-tokens", type=click.IntRange(min=1), default=16, show_default=True, help="Tokens to generate for each prompt.")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Requests in one batch on one rank.")
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
@click.option("--ignore-eos", is_flag=True, help="Always generate all new tokens (for benchmarks).")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the replica choice.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def run(
    model: str,
    placement_path: Path,
    local: str | None,
    prompts: tuple[str, ...],
    texts: tuple[Path, ...],
    requests: int,
    prompt_tokens: int,
    new_tokens: int,
    batch_size: int,
    dispatches: tuple[str, ...],
    profile: Path | None,
    predict: bool,
    ignore_eos: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Run MODEL with its experts placed by a plan; each rank loads only its own experts."""
    _check_options(prompts, texts, dispatches, profile=profile, predict=predict)
    require_runtime()
    from grace_moe.runtime.job.generation import GenerationOptions
    from grace_moe.runtime.job.job import Job, RunSpec
    from grace_moe.runtime.model.description import load_config, load_tokenizer

    placement = Placement.load(placement_path)
    if local is not None and Topology.parse(local).shape != placement.topology.shape:
        raise MismatchError(
            f"--local: {local} does not match {placement_path}, which is planned for {placement.topology.shape}; "
            f"plan for {local} or start {placement.topology.shape}"
        )
    notes = [note for d in dispatches if d in SENDS and d != "vanilla" and (note := other_backend(placement, d)) is not None]
    config = load_config(model)
    tokenizer = load_tokenizer(model)
    job = Job(
        model=model,
        requests=_requests(prompts, texts, tokenizer, tokens_per_request=prompt_tokens, max_requests=requests),
        options=GenerationOptions(new_tokens=new_tokens, batch_size=batch_size, stop_at_eos=not ignore_eos),
        runs=tuple(RunSpec(name=d, placement=str(placement_path), dispatch=d) for d in dispatches),
        seed=seed,
        profile=profile is not None,
        keep_routing=predict,
    )

    def show(results: tuple[RunResult, ...]) -> None:
        for note in notes:
            click.echo(f"note: {placement_path}: {note}", err=True)
        predicted = _predicted(results, placement, config.get_text_config().hidden_size, seed) if predict else {}
        _show(results, predicted, job, tokenizer, with_text=bool(prompts), profile=profile, as_json=as_json)

    if local is not None:
        show(_on_local_ranks(job, placement.topology.num_devices))
    else:
        _as_a_rank(job, show)


def _check_options(
    prompts: tuple[str, ...], texts: tuple[Path, ...], dispatches: tuple[str, ...], *, profile: Path | None, predict: bool
) -> None:
    """Raise UsageError where options don't go together."""
    if bool(prompts) == bool(texts):
        raise UsageError("--prompt, --text: give one of the two")
    if profile is not None and "vanilla" in dispatches:
        raise UsageError("--profile: vanilla's phases are inside Transformers; profile flat or hierarchical")
    if predict and set(dispatches) == {"vanilla"}:
        raise UsageError("--predict: vanilla's routing is inside Transformers; add another --dispatch, whose routing is the same")


def _requests(
    prompts: tuple[str, ...], texts: tuple[Path, ...], tokenizer: Any, *, tokens_per_request: int, max_requests: int
) -> tuple[Request, ...]:
    """The prompts, or what is cut from the texts."""
    from grace_moe.runtime.job.generation import Request
    from grace_moe.runtime.job.recording import requests_from_text

    if not prompts:
        contents = [read_text(path) for path in texts]
        return tuple(requests_from_text(contents, tokenizer, tokens_per_request=tokens_per_request, max_requests=max_requests))
    encoded = [tuple(tokenizer.encode(text)) for text in prompts]
    if any(not ids for ids in encoded):
        raise UsageError("--prompt: a prompt is empty; give it some text")
    return tuple(Request(request_id=i, prompt=ids) for i, ids in enumerate(encoded))


def _as_a_rank(job: Job, show: Callable[[tuple[RunResult, ...]], None]) -> NoReturn:
    """Do the job as one of torchrun's ranks; the process ends here."""
    from grace_moe.runtime.job.on_rank import run_on_rank
    from grace_moe.runtime.job.ranks import joined, leave

    if os.environ.get("WORLD_SIZE") is None:
        raise UsageError("--local: not given, and this is not a rank of torchrun; give --local NxG")
    try:
        with joined() as member:
            results = run_on_rank(job, member)
    except GraceError as error:
        click.echo(f"error: {printable(str(error))}", err=True)
        leave(error.exit_code)
    if results:  # rank 0 alone has them
        show(results)
    leave(0)


def _on_local_ranks(job: Job, num_ranks: int) -> tuple[RunResult, ...]:
    from grace_moe.runtime.job.launch import run_local

    with status_line() as tell:
        return run_local(job, num_ranks, on_status=lambda name: tell(f"running on {num_ranks} ranks: {name}"))


def _predicted(results: tuple[RunResult, ...], placement: Placement, hidden_size: int, seed: int) -> dict[str, float]:
    """Dispatch -> bytes between nodes per token that a replay of the run's own routing predicts."""
    routing = next(result.routing for result in results if result.routing is not None)
    wire = WireFormat(hidden_size=hidden_size, itemsize=FLOAT32_BYTES, top_k=routing.top_k)
    found = {}
    for result in results:
        evaluation = evaluate(placement, routing, seed=seed, passes=passes_of_tokens(routing, result.first_pass))
        sent = cross_node_bytes(evaluation, wire, result.dispatch, steps=result.passes, pass_rows=result.pass_rows)
        found[result.name] = sent / max(1, result.tokens)
    return found


def _show(
    results: tuple[RunResult, ...],
    predicted: dict[str, float],
    job: Job,
    tokenizer: Any,
    *,
    with_text: bool,
    profile: Path | None,
    as_json: bool,
) -> None:
    from grace_moe.runtime.profiling import chrome_trace

    events = None if profile is None else chrome_trace({result.name: result.spans for result in results}).encode()
    if as_json:
        show_json({"runs": [_summary(r, predicted.get(r.name), tokenizer) for r in results]})
        if profile is not None and events is not None:
            write_atomically(profile, events)  # last: a full disk must not cost what was generated
        return
    if with_text:
        for completion, request in zip(results[0].completions, job.requests, strict=True):
            prompt, completed = (printable(tokenizer.decode(ids)) for ids in (request.prompt, completion.tokens))
            click.echo(f"{prompt}{click.style(completed, bold=True)}\n")
    for result in results:
        _show_run(result, predicted.get(result.name))
    if profile is not None and events is not None:
        write_atomically(profile, events)
        say(f"{profile}: Chrome trace; open it in https://ui.perfetto.dev")


def _show_run(result: RunResult, predicted: float | None) -> None:
    """One line of figures, and where a layer's time goes if it was timed."""
    from grace_moe.runtime.profiling import phase_times

    sent = f"{result.cross_node_bytes_per_token / 1024:.2f} KiB a token between nodes"
    if predicted is not None:
        sent += f" ({predicted / 1024:.2f} predicted)"
    say(
        f"{result.dispatch}: {result.tokens:,} tokens, {sent}, "
        f"prefill {result.prefill_seconds:.2f} s, decode {result.decode_seconds_per_step * 1000:.0f} ms a step, "
        f"expert memory per rank {min(result.expert_bytes) / 2**20:.1f} to {max(result.expert_bytes) / 2**20:.1f} MiB"
    )
    for time in phase_times(result.spans) if result.spans else ():
        say(f"  {time.phase:<9}{time.mean_ms:8.2f} ms a layer and step ({time.share:4.0%}), slowest rank {time.slowest_rank_ms:.2f} ms")


def _summary(result: RunResult, predicted: float | None, tokenizer: Any) -> dict[str, Any]:
    from grace_moe.runtime.profiling import phase_times

    return {
        "dispatch": result.dispatch,
        "tokens": result.tokens,
        "cross_node_bytes_per_token": result.cross_node_bytes_per_token,
        **({} if predicted is None else {"predicted_cross_node_bytes_per_token": predicted}),
        "intra_node_bytes_per_token": result.intra_node_bytes / max(1, result.tokens),
        "prefill_seconds": result.prefill_seconds,
        "decode_seconds_per_step": result.decode_seconds_per_step,
        "expert_bytes_per_rank": list(result.expert_bytes),
        **({"phases": [asdict(p) for p in phase_times(result.spans)]} if result.spans else {}),
        "completions": [
            {"request_id": c.request_id, "tokens": list(c.tokens), "text": tokenizer.decode(c.tokens)} for c in result.completions
        ],
    }
