"""`grace-moe plan`: which device holds which expert."""

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Unpack

import click

from grace_moe.cli.cost_options import batch_option, served_model_option, served_overlap_option, served_phase_option, served_setting
from grace_moe.cli.options import (
    backend_option,
    expert_bytes_option,
    json_option,
    method_options,
    read_recordings,
    redundancy_option,
    seed_option,
    shared,
    slots_option,
    topology_option,
    traces_argument,
)
from grace_moe.cli.output import say, show_json
from grace_moe.cli.paths import FileCommand, OutputPath
from grace_moe.cli.progress import compilation_told, progress_of
from grace_moe.evaluation import SlotLimits
from grace_moe.placement import Placement
from grace_moe.planning import DEFAULT_METHOD, plan
from grace_moe.topology import Topology


@click.command(
    "plan",
    cls=FileCommand,
    epilog="""\b
Examples:
  grace-moe plan olmoe.safetensors --topology 2x4 -o plan.json
  grace-moe plan olmoe.safetensors --topology 2x4 --method eplb --redundancy 1.25 -o eplb.json
  grace-moe plan olmoe.safetensors --topology 2x2 --method grace_paper --option r=0.15 -o paper.json
  grace-moe plan olmoe.safetensors --topology 2x4 --backend deepep_low_latency -o plan.json
  grace-moe plan olmoe.safetensors --topology 2x8:h100-400g --phase decode --batch 256 --model ./OLMoE-1B-7B -o plan.json
  grace-moe plan wiki.safetensors chat.safetensors --topology 2x4 -o plan.json
  grace-moe plan today.safetensors --topology 2x4 --start plan.json -o plan2.json
""",
)
@traces_argument
@topology_option
@click.option("--method", help="How to plan; `grace-moe compare --help` lists the methods.  [default: the best]")
@shared(served_model_option, served_phase_option, batch_option, served_overlap_option)
@shared(backend_option, redundancy_option, slots_option, expert_bytes_option, seed_option)
@click.option("--start", type=click.Path(path_type=Path), help="Placement to improve on, in a fraction of the time (method grace).")
@click.option("--option", "pairs", multiple=True, metavar="NAME=VALUE", help="An option of the method; repeat for several.")
@click.option("-o", "--output", type=OutputPath(), required=True, help="Placement to write (.json).")
@json_option
def plan_command(
    trace_paths: tuple[Path, ...],
    topology_text: str,
    method: str | None,
    seed: int,
    start: Path | None,
    backend: str | None,
    model: Path | None,
    phase: str | None,
    batch: int | None,
    overlap: float | None,
    pairs: tuple[str, ...],
    output: Path,
    as_json: bool,
    **limits: Unpack[SlotLimits],
) -> None:
    """Plan a placement from TRACE for a topology; several traces of one model weigh the same.

    With --phase, --batch, --model or --overlap it is for the modelled time of a layer (docs/cost.md), else for copies between nodes."""
    options = method_options(pairs)
    trace, topology = read_recordings(trace_paths), Topology.parse(topology_text)
    timed = any(value is not None for value in (model, phase, batch, overlap))
    setting = served_setting(trace, model, phase, batch, backend, overlap) if timed else None
    began = time.perf_counter()
    told = compilation_told() if method in (None, DEFAULT_METHOD) else nullcontext()
    with told, progress_of("planning") as reach:
        placement = plan(
            trace,
            topology,
            method or DEFAULT_METHOD,
            seed=seed,
            start=None if start is None else Placement.load(start),
            backend=None if timed else backend,
            setting=setting,
            progress=reach,
            **limits,
            **options,
        )
    seconds = time.perf_counter() - began
    placement.save(output)
    if as_json:
        show_json(_facts(placement, output, seconds))
    else:
        say(_line(placement, output, seconds), placement.provenance["notes"])


def _facts(placement: Placement, output: Path, seconds: float) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "placement": str(output),
        "method": placement.provenance["method"],
        "topology": placement.topology.shape,
        "plan_seconds": round(seconds, 3),
        "slots_total_over_experts": placement.slots_total_over_experts,
        "slots_max_per_device": int(placement.slots_per_device().max()),
        **{name: placement.provenance[name] for name in ("backend", "served") if name in placement.provenance},
        "notes": placement.provenance["notes"],
    }


def _line(placement: Placement, output: Path, seconds: float) -> str:
    """What a person reads."""
    slots = placement.slots_per_device()
    return (
        f"{output}: {placement.provenance['method']} for {placement.topology.shape}, {len(placement.layers)} layers in {seconds:.1f} s, "
        f"{placement.slots_total_over_experts:.2f}x expert memory, {int(slots.min())} to {int(slots.max())} experts a device"
    )
