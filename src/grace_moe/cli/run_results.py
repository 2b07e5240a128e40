"""What `grace-moe run` measured, as lines or as JSON."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grace_moe.cli.output import say, show_json
from grace_moe.cost.wire import WireFormat
from grace_moe.evaluation import cross_node_bytes, evaluate, passes_of_tokens
from grace_moe.files import write_atomically
from grace_moe.placement import Placement

if TYPE_CHECKING:
    from grace_moe.adapt import AdaptStatus
    from grace_moe.runtime.job.job import Job
    from grace_moe.runtime.job.results import RunResult


def predicted_bytes(results: tuple[RunResult, ...], placement: Placement, config: Any, job: Job) -> dict[str, float]:
    """Dispatch -> bytes between nodes per token that a replay of the run's own routing predicts."""
    routing = next(result.routing for result in results if result.routing is not None)
    import torch

    itemsize = getattr(torch, job.dtype).itemsize
    wire = WireFormat(hidden_size=config.get_text_config().hidden_size, itemsize=itemsize, top_k=routing.top_k)
    found = {}
    for result in results:
        evaluation = evaluate(placement, routing, seed=job.seed, passes=passes_of_tokens(routing, result.first_pass))
        sent = cross_node_bytes(evaluation, wire, result.dispatch, steps=result.passes, pass_rows=result.pass_rows)
        found[result.name] = sent / max(1, result.tokens)
    return found


def show_results(
    results: tuple[RunResult, ...], predicted: dict[str, float], tokenizer: Any, *, profile: Path | None, as_json: bool
) -> None:
    """Print what the runs measured, as JSON with their completions too; write the Chrome trace where there is a profile."""
    from grace_moe.runtime.profiling import chrome_trace

    if as_json:
        show_json({"runs": [_summary(r, predicted.get(r.name), tokenizer) for r in results]})
    else:
        for result in results:
            _show_run(result, predicted.get(result.name))
    if profile is not None:  # last: a full disk must not cost what was generated
        write_atomically(profile, chrome_trace({result.name: result.spans for result in results}).encode())
        if not as_json:
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
    if result.adapt is not None:
        say(adapted(result.adapt))
    for time in phase_times(result.spans) if result.spans else ():
        say(f"  {time.phase:<9}{time.mean_ms:8.2f} ms a layer and step ({time.share:4.0%}), slowest rank {time.slowest_rank_ms:.2f} ms")


def adapted(status: AdaptStatus) -> str:
    """How adaptation went, in a line."""
    under_way = ", one under way at the end" if status.state == "moving" else ""
    words = (
        f"  adapt: {status.steps} steps ({status.seen_steps} seen by what decides), {status.decisions} decisions "
        f"({status.skipped} to stay), {status.migrations} migrations{under_way}, "
        f"{status.layers_switched} layers switched, {status.copies_moved} copies moved ({status.bytes_moved / 2**20:.1f} MiB), "
        f"{status.rolled_back} rolled back"
    )
    for note in (status.effect, status.last_reason, status.last_error):
        words += f"\n    {note}" if note else ""
    return words


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
        **({} if result.adapt is None else {"adapt": asdict(result.adapt)}),
        **({"phases": [asdict(p) for p in phase_times(result.spans)]} if result.spans else {}),
        "completions": [
            {"request_id": c.request_id, "tokens": list(c.tokens), "text": tokenizer.decode(c.tokens)} for c in result.completions
        ],
    }
