"""`grace-moe record`: a model's routing on some text, as a trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from grace_moe.cli.options import read_text
from grace_moe.cli.output import say
from grace_moe.cli.paths import FileCommand, OutputPath
from grace_moe.cli.progress import progress_bar
from grace_moe.engines.vllm.recording import record_with_vllm
from grace_moe.errors import UsageError, printable
from grace_moe.runtime import require_runtime
from grace_moe.trace import RecordingSizes, RoutingTrace, skew

if TYPE_CHECKING:
    import torch


@click.command(
    cls=FileCommand,
    epilog="""\b
Examples:
  grace-moe record ./OLMoE-1B-7B --text wiki.txt --text code.py -o olmoe.safetensors
  grace-moe record ./OLMoE-1B-7B --text chat.txt --requests 200 --new-tokens 64 -o chat.safetensors
  grace-moe record ./OLMoE-1B-7B --text chat.txt --token-ids -o front.safetensors
  grace-moe record ./Qwen3-30B-A3B --engine vllm --dtype bfloat16 --text wiki.txt -o qwen.safetensors
""",
)
@click.argument("model", type=click.Path())
@click.option(
    "--text", "texts", type=click.Path(path_type=Path), multiple=True, required=True, help="Text to run; repeat for several files."
)
@click.option("-o", "--output", type=OutputPath(), required=True, help="Trace to write (.safetensors).")
@click.option("--requests", type=click.IntRange(min=1), default=256, show_default=True, help="Requests to make of the text, at most.")
@click.option("--prompt-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Tokens of each request's prompt.")
@click.option("--new-tokens", type=click.IntRange(min=1), default=16, show_default=True, help="Tokens to generate for each request.")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Requests in one batch.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option(
    "--engine", type=click.Choice(["transformers", "vllm"]), default="transformers", show_default=True, help="What runs the model."
)
@click.option(
    "--device", metavar="DEVICE", help="Where Transformers runs it: cpu, cuda, cuda:1.  [default: the GPU where torch finds one, else cpu]"
)
@click.option("--resume", is_flag=True, help="Go on from the partial trace that an interrupted recording left beside the output.")
@click.option("--token-ids", is_flag=True, help="Keep what the tokens are, for `grace-moe front`: the trace then holds the text.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def record(
    model: str,
    texts: tuple[Path, ...],
    output: Path,
    requests: int,
    prompt_tokens: int,
    new_tokens: int,
    batch_size: int,
    dtype: str,
    engine: str,
    device: str | None,
    resume: bool,
    token_ids: bool,
    as_json: bool,
) -> None:
    """Run MODEL (a folder, or a hub id) on text and record which experts its router chooses.

    An interrupted recording keeps its finished batches in OUTPUT's .partial.safetensors, itself a trace; --resume goes on from there.
    """
    if resume and engine != "transformers":
        raise UsageError("--resume: vLLM's recordings are not kept in parts; record again without it")
    contents = [read_text(path) for path in texts]
    named = {"name": printable(Path(model).name), "dataset": printable(", ".join(p.name for p in texts))}
    sizes = RecordingSizes(requests=requests, prompt_tokens=prompt_tokens, new_tokens=new_tokens, batch_size=batch_size, dtype=dtype)
    if token_ids and engine == "vllm":
        raise UsageError("--token-ids: vLLM's routing comes without them; record with Transformers")
    if device is not None and engine == "vllm":
        raise UsageError("--device: vLLM takes its own; leave it out, or record with Transformers")
    if engine == "vllm":
        trace, made = _by_vllm(model, contents, named, sizes)
        trace.save(output)
        bytes_of_expert = None  # vLLM does not tell them
    else:
        trace, made, bytes_of_expert = _by_transformers(
            model, contents, named, sizes, output, device=device, resume=resume, token_ids=token_ids
        )
    summary = {
        "trace": str(output),
        "requests": made,
        "tokens": trace.num_tokens,
        "layers": trace.num_layers,
        "num_experts": trace.num_experts,
        "top_k": trace.top_k,
        "expert_bytes": bytes_of_expert,
        "expert_load_max_over_mean": round(float(skew(trace).mean()), 3),
    }
    if as_json:
        click.echo(json.dumps(summary))
    else:
        say(
            f"{output}: {trace.num_tokens:,} tokens of {made} requests, {trace.num_layers} MoE layers "
            f"of {trace.num_experts} experts, top-{trace.top_k}; "
            f"the hottest expert has {summary['expert_load_max_over_mean']}x the mean load"
        )


def _by_transformers(
    model: str,
    contents: list[str],
    named: dict[str, str],
    sizes: RecordingSizes,
    output: Path,
    *,
    device: str | None,
    resume: bool,
    token_ids: bool,
) -> tuple[RoutingTrace, int, int]:
    """Trace, requests, and bytes of one expert of one layer; the trace is saved."""
    require_runtime()
    import torch

    from grace_moe.runtime.job.generation import GenerationOptions
    from grace_moe.runtime.job.kept_recording import KeptRecording
    from grace_moe.runtime.job.recording import requests_from_text
    from grace_moe.runtime.model.description import load_tokenizer
    from grace_moe.runtime.model.loading import expert_bytes, load_whole_model

    there = _device(device)
    loaded = load_whole_model(model, dtype=getattr(torch, sizes.dtype))
    try:
        loaded = loaded.to(there)
    except torch.OutOfMemoryError:
        raise UsageError(f"--device: {model} does not fit on {there} in {sizes.dtype}; give another, such as cpu") from None
    tokenizer = load_tokenizer(model)
    prompts = requests_from_text(contents, tokenizer, tokens_per_request=sizes.prompt_tokens, max_requests=sizes.requests)
    options = GenerationOptions(new_tokens=sizes.new_tokens, batch_size=sizes.batch_size, stop_at_eos=True)
    recording = KeptRecording(
        requests=prompts, options=options, dtype=sizes.dtype, device=there.type, output=output, token_ids=token_ids, **named
    )
    try:
        with progress_bar("recording", total=len(prompts) * sizes.new_tokens) as advance:
            trace = recording.record(loaded, resume=resume, progress=advance)
    except KeyboardInterrupt:
        if recording.partial.exists():
            click.echo(f"{printable(str(recording.partial))}: what was recorded; go on with --resume", err=True)
        raise
    trace.save(output)
    recording.discard()
    return trace, len(prompts), expert_bytes(loaded) // (trace.num_layers * trace.num_experts)


def _device(text: str | None) -> torch.device:
    """The device that `--device` names; a GPU where torch finds one, if it is None. Raises UsageError: it is not here."""
    import torch

    from grace_moe.runtime.dispatch.rank_groups import rank_device

    if text is None:
        return rank_device()
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # torch without CUDA asserts
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device: {text!r} is no device of torch's here; give cpu, cuda or cuda:N, or leave it out")
    return device


def _by_vllm(model: str, contents: list[str], named: dict[str, str], sizes: RecordingSizes) -> tuple[RoutingTrace, int]:
    """Trace and requests."""
    with progress_bar("recording with vLLM", total=sizes.requests * sizes.new_tokens) as advance:
        return record_with_vllm(model, contents, sizes, progress=advance, **named)
