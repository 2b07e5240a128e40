"""`grace-moe import`: what an engine recorded, as a trace; or the map it runs with, as a placement."""

from pathlib import Path
from typing import Any

import click

from grace_moe.cli.model_options import hidden_layers_option, model_option, read_hints
from grace_moe.cli.options import json_option
from grace_moe.cli.output import say, show_json
from grace_moe.cli.paths import FileCommand, OutputPath
from grace_moe.engines import MAP_IMPORTERS, TRACE_IMPORTERS, Hints
from grace_moe.errors import UsageError
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace, skew


@click.command(
    "import",
    cls=FileCommand,
    epilog="""\b
Examples:
  grace-moe import --engine vllm responses.jsonl --model ./Qwen3-30B-A3B -o qwen.safetensors
  grace-moe import --engine sglang expert_distribution_recorder_*.pt -o trace.safetensors
  grace-moe import --engine tensorrt-llm ./expert_statistic -o trace.safetensors
  grace-moe import --engine llama.cpp moe_trace.csv --num-experts 128 --top-k 8 -o trace.safetensors
  grace-moe import --engine loads expert_load_rank*.csv --model ./DeepSeek-V3 -o loads.safetensors
  grace-moe import --engine sglang location.json --topology 2x8 --model ./DeepSeek-V3 -o running.json
""",
)
@click.argument("dumps", metavar="DUMP...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--engine", required=True, type=click.Choice(list(TRACE_IMPORTERS | MAP_IMPORTERS)), help="What wrote it.")
@click.option("-o", "--output", type=OutputPath(), required=True, help="Trace (.safetensors), or placement (.json).")
@click.option(
    "--topology", "topology_text", type=click.Path(), metavar="T", help="DUMP is a slot map: import it as a placement on this topology."
)
@model_option
@click.option("--num-experts", type=click.IntRange(1, 32_767), metavar="N", help="Experts of a layer.")
@click.option("--top-k", type=click.IntRange(min=1), metavar="K", help="Experts that a token chooses.")
@hidden_layers_option
@click.option("--layers", metavar="L", help="Layers that have experts, such as 1-26.  [default: by --model, else by the dump]")
@click.option(
    "--skip-tokens", type=click.IntRange(min=0), default=0, metavar="N", help="Leave out the first N tokens, such as an engine's warm-up."
)
@click.option("--name", default="", help="Name of the model, for the trace.")
@click.option("--dataset", default="", help="What text it was, for the trace.")
@json_option
def import_command(
    dumps: tuple[Path, ...],
    engine: str,
    output: Path,
    topology_text: str | None,
    model: Path | None,
    num_experts: int | None,
    top_k: int | None,
    num_hidden_layers: int | None,
    layers: str | None,
    skip_tokens: int,
    name: str,
    dataset: str,
    as_json: bool,
) -> None:
    """Import what a serving engine recorded, as a trace to plan on.

    Given --topology, import a slot map that an engine runs with instead, as a placement to inspect, evaluate or start from.
    """
    hints, _ = read_hints(
        model,
        num_experts=num_experts,
        top_k=top_k,
        num_hidden_layers=num_hidden_layers,
        layers=layers,
        skip_tokens=skip_tokens,
        name=name,
        dataset=dataset,
    )
    if topology_text is not None:
        summary, text = _import_map(engine, dumps, topology_text, hints, output)
    else:
        summary, text = _import_trace(engine, dumps, hints, output)
    show_json(summary) if as_json else say(text, summary.get("notes", ()))


def _import_map(engine: str, dumps: tuple[Path, ...], topology_text: str, hints: Hints, output: Path) -> tuple[dict[str, Any], str]:
    """Save a slot map as a placement. Returns the facts, and a line that says them."""
    if engine not in MAP_IMPORTERS or len(dumps) != 1:
        raise UsageError(f"--topology: one slot map of {', '.join(MAP_IMPORTERS)}; leave it out to import a trace")
    topology = Topology.parse(topology_text)
    slots = MAP_IMPORTERS[engine](dumps[0], topology.num_devices, hints)
    placement = slots.to_placement(topology, model=hints.model, engine=engine)
    placement.save(output)
    facts = {
        "placement": str(output),
        "layers": len(slots.layer_ids),
        "num_experts": slots.num_experts,
        "slots_per_device": slots.slots_per_rank,
        "notes": placement.provenance["notes"],
    }
    of = f"{len(slots.layer_ids)} MoE layers of {slots.num_experts} experts"
    return facts, f"{output}: {of} on {topology.shape}, {slots.slots_per_rank} slots a device"


def _import_trace(engine: str, dumps: tuple[Path, ...], hints: Hints, output: Path) -> tuple[dict[str, Any], str]:
    """Save what an engine recorded as a trace. Returns the facts, and a line that says them."""
    if engine not in TRACE_IMPORTERS:
        raise UsageError(f"--engine: {engine} records as vllm does: use that; or give --topology to import its slot map")
    imported = TRACE_IMPORTERS[engine](dumps, hints)
    trace = imported.trace
    trace.save(output)
    hottest = round(float(skew(trace).mean()), 3)
    tokens = trace if isinstance(trace, RoutingTrace) else None
    facts = {
        "trace": str(output),
        "tokens": tokens and tokens.num_tokens,
        "requests": None if tokens is None or tokens.request_ids is None else len(set(tokens.requests.tolist())),
        "layers": trace.num_layers,
        "num_experts": trace.num_experts,
        "top_k": tokens and tokens.top_k,
        "counts_only": tokens is None,
        "surrogate": tokens is not None and tokens.surrogate,
        "expert_load_max_over_mean": hottest,
        "notes": list(imported.notes),
    }
    of = f"{trace.num_layers} MoE layers of {trace.num_experts} experts"
    what = f"counts of {of}" if tokens is None else f"{tokens.num_tokens:,} tokens, {of}, top-{tokens.top_k}"
    return facts, f"{output}: {what}; the hottest expert has {hottest}x the mean load"
