"""`grace-moe export`: a placement in an engine's own format, and how to start the engine with it."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from grace_moe.cli.model_options import hidden_layers_option, layer_numbers, model_option, read_hints
from grace_moe.cli.options import json_option
from grace_moe.cli.output import say, show_json
from grace_moe.cli.paths import FileCommand, OutputPath
from grace_moe.engines import EXPORTERS, ModelShape, SlotMap, equalise, export_loads
from grace_moe.errors import MismatchError, UsageError
from grace_moe.evaluation import evaluate
from grace_moe.files import write_atomically
from grace_moe.placement import Placement, even_weights
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace, expert_loads, read_recording

CHOICES = {"nearest replica": "tar", "any replica": "wrr"}
"""How an engine may choose among replicas: SGLang's static dispatch and our vLLM plug-in, and the rest."""


@click.command(
    "export",
    cls=FileCommand,
    epilog="""\b
Examples:
  grace-moe export plan.json --engine sglang --model ./DeepSeek-V3 -o location.json
  grace-moe export plan.json --engine tensorrt-llm --model ./DeepSeek-V3 -o moe_load_balancer.yaml
  grace-moe export plan.json --engine vllm --slots-per-device 10 --trace trace.safetensors -o map.json
""",
)
@click.argument("placement_path", metavar="PLACEMENT", type=click.Path(path_type=Path))
@click.option("--engine", required=True, type=click.Choice(list(EXPORTERS)), help="What will read it.")
@click.option("-o", "--output", type=OutputPath(), required=True, help="File to write.")
@click.option("--slots-per-device", type=click.IntRange(min=1), metavar="S", help="Slots of every device.  [default: the plan's most]")
@click.option(
    "--trace",
    "trace_path",
    type=click.Path(path_type=Path),
    help="Trace that was planned on: fills spare slots and evens the load out as the engine will share it.",
)
@model_option
@hidden_layers_option
@click.option("--extra-layers", metavar="L", help="Layers with experts but no plan, such as 61 (MTP).  [default: by --model]")
@click.option("--loads", "loads_path", type=OutputPath(), help="Also write TRACE's loads for vLLM's policy (.npy).")
@json_option
def export_command(
    placement_path: Path,
    engine: str,
    output: Path,
    slots_per_device: int | None,
    trace_path: Path | None,
    model: Path | None,
    num_hidden_layers: int | None,
    extra_layers: str | None,
    loads_path: Path | None,
    as_json: bool,
) -> None:
    """Write PLACEMENT as an engine reads it.

    Engines want the same number of slots on every device: where the plan differs, spare slots are filled with the replicas that help
    most, and what was changed is said.
    """
    if loads_path is not None and (trace_path is None or engine != "vllm"):
        raise UsageError("--loads: with --engine vllm and --trace")
    placement = Placement.load(placement_path)
    trace = None if trace_path is None else read_recording(trace_path)
    hints, shape = read_hints(model, num_hidden_layers=num_hidden_layers)
    _check_model(placement_path, placement, shape)
    equal = equalise(placement, slots_per_device=slots_per_device, trace=trace)
    slots = SlotMap.of(equal.placement)
    exported = EXPORTERS[engine](slots, hints, _extra_layers(engine, extra_layers, shape))
    write_atomically(output, exported.data)
    if loads_path is not None and trace is not None:
        write_atomically(loads_path, export_loads(expert_loads(trace)))
    words = {"PLAN": shlex.quote(str(output.absolute())), "MODEL": shlex.quote(str(model or "MODEL"))}
    launch = re.sub(r"\b(PLAN|MODEL)\b", lambda word: words[word[0]], exported.launch)  # not within GRACE_MOE_PLAN
    summary = {
        "file": str(output),
        "engine": engine,
        "ranks": slots.num_ranks,
        "slots_per_device": slots.slots_per_rank,
        "num_slots": slots.num_slots,
        "num_redundant_experts": slots.num_redundant,
        "replicas_added": equal.added,
        "replicas_dropped": equal.dropped,
        "experts_moved": equal.moved,
        "experts_swapped": equal.swapped,
        "launch": launch,
        "predicted": _predicted(equal.placement, trace) if isinstance(trace, RoutingTrace) and not trace.surrogate else {},
        "notes": [*equal.notes(), *exported.notes, *_order_of_ranks(placement.topology)],
    }
    show_json(summary) if as_json else say(_text(summary, slots))


def _check_model(path: Path, placement: Placement, shape: ModelShape | None) -> None:
    """Raise MismatchError where the model's config has other layers or experts than the placement."""
    if shape is None:
        return
    layers = shape.moe_layer_ids or tuple(layer for layer in placement.layer_ids if layer < shape.num_hidden_layers)
    if layers != placement.layer_ids or shape.num_experts != placement.num_experts:
        raise MismatchError(
            f"{path}: {len(placement.layers)} layers of {placement.num_experts} experts, but {shape.source} has "
            f"{len(layers)} of {shape.num_experts}, first {list(layers)[:3]}; give the model that was planned for"
        )


def _text(summary: dict[str, Any], slots: SlotMap) -> str:
    """The summary for people."""
    of = f"{len(slots.layer_ids)} MoE layers of {slots.num_experts} experts for {summary['engine']}"
    ranks = f"{slots.num_ranks} ranks of {slots.slots_per_rank} slots, {slots.num_redundant} redundant"
    lines = [f"{summary['file']}: {of}, {ranks}"]
    lines += [
        f"replayed, {rule}: {numbers['cross_node_copies']:.3f} copies of a token to other nodes, "
        f"busiest device {numbers['load_max_over_mean']:.2f}x the mean"
        for rule, numbers in summary["predicted"].items()
    ]
    lines += [f"note: {note}" for note in summary["notes"]]
    return "\n".join([*lines, f"start it with:\n\n{summary['launch']}"])


def _order_of_ranks(topology: Topology) -> tuple[str, ...]:
    """Which node a rank must be on, where there are several: the engine's own flags for several nodes decide it."""
    if topology.num_nodes == 1:
        return ()
    each = topology.devices_per_node
    where = f"rank r is on node r // {each}" if each else f"ranks are numbered node by node ({topology.shape})"
    return (f"{topology.num_nodes} nodes: {where}; add the engine's own flags for several nodes so that it starts them in this order",)


def _extra_layers(engine: str, text: str | None, shape: ModelShape | None) -> tuple[int, ...]:
    if engine != "tensorrt-llm":
        if text is not None:
            raise UsageError(f"--extra-layers: {engine} takes none; leave it out")
        return ()
    if text is not None:
        return layer_numbers("--extra-layers", text)
    return () if shape is None else tuple(range(shape.num_hidden_layers, shape.num_hidden_layers + shape.num_draft_layers))


def _predicted(placement: Placement, trace: RoutingTrace) -> dict[str, dict[str, float]]:
    """What the map costs on the trace, as an engine chooses replicas: evenly, near or anywhere."""
    found = {}
    for rule, choice in CHOICES.items():
        layers = tuple(
            replace(layer, replica_weights=even_weights(layer.devices_of_expert), replica_choice="") for layer in placement.layers
        )
        measured = evaluate(replace(placement, layers=layers, replica_choice=choice), trace)
        found[rule] = {
            "cross_node_copies": round(measured.cross_node_copies, 4),
            "load_max_over_mean": round(measured.load_max_over_mean, 4),
        }
    return found
