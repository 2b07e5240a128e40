"""`grace-moe diagnose`: is balancing worth it? A verdict first."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

import click
from rich.console import Console

from grace_moe.cli.cost_options import backend_option, batch_option, overlap_option, phase_option, served_model_option, served_sizes
from grace_moe.cli.options import (
    eval_option,
    expert_bytes_option,
    json_option,
    parted,
    read_recordings,
    redundancy_option,
    seed_option,
    shared,
    slots_option,
    split_option,
    topology_option,
    traces_argument,
)
from grace_moe.cli.output import say, show_json
from grace_moe.cli.progress import compilation_told
from grace_moe.cost.step import Setting
from grace_moe.errors import UsageError
from grace_moe.evaluation import LEAST_GAIN, SlotLimits, diagnose
from grace_moe.placement import Placement
from grace_moe.report import diagnosis_table
from grace_moe.topology import Topology
from grace_moe.trace import LoadProfile, RoutingTrace


@click.command(
    "diagnose",
    epilog="""\b
Examples:
  grace-moe diagnose trace.safetensors --topology 2x8:h100-400g --model ./DeepSeek-V3 --backend deepep_high_throughput
  grace-moe diagnose trace.safetensors --topology 2x8:h100-400g --model ./DeepSeek-V3 --phase decode --batch 64 --backend deepep_low_latency
  grace-moe diagnose trace.safetensors --topology calibrated.json --now plan.json
""",
)
@traces_argument
@shared(topology_option, eval_option, split_option, served_model_option, phase_option, batch_option, backend_option, overlap_option)
@click.option("--now", "now_path", type=click.Path(path_type=Path), help="Placement in use.  [default: experts in order]")
@click.option("--least-gain", type=float, default=LEAST_GAIN, show_default=True, help="Share of a layer's time that makes it worth it.")
@shared(redundancy_option, slots_option, expert_bytes_option, seed_option, json_option)
def diagnose_command(
    trace_paths: tuple[Path, ...],
    topology_text: str,
    eval_path: Path | None,
    split_seed: int | None,
    model: Path | None,
    phase: str,
    batch: int | None,
    backend: str,
    overlap: float,
    now_path: Path | None,
    least_gain: float,
    seed: int,
    as_json: bool,
    **limits: Unpack[SlotLimits],
) -> None:
    """Say whether a plan is worth it for TRACE on a cluster: worth it, not worth it, or not enough evidence.

    Half of the requests are planned on and the others replayed, and the other way round; with --eval or --split-seed one way alone.
    Times are modelled (docs/cost.md), not measured."""
    trace, topology = read_recordings(trace_paths), Topology.parse(topology_text)
    planned_on, measure_on = _parted(trace, eval_path, split_seed)
    now = None if now_path is None else Placement.load(now_path)
    sizes = served_sizes(model, trace)
    setting = Setting(model=sizes, phase=phase, batch_tokens=batch, backend=backend, overlap=overlap)
    with compilation_told():
        found = diagnose(planned_on, topology, setting, measure_on=measure_on, now=now, least_gain=least_gain, seed=seed, **limits)
    if as_json:
        show_json(found.to_dict())
        return
    say(f"{found.verdict}: {found.reason}")
    if found.now is not None:
        Console().print(diagnosis_table(found))
        low, high = (1e3 * seconds for seconds in found.saved)
        per_token = [1e6 * found.per_token(time.total) for time in (found.now, found.planned) if time is not None]
        say(
            f"saved: {low:.3f} to {high:.3f} ms a layer (95%, over requests); "
            f"{per_token[0]:,.1f} -> {per_token[1]:,.1f} us a token in {found.layers} layers; "
            f"{found.memory_bytes / 1e9:+.2f} GB of experts in all"
        )
    for note in found.notes:
        say(f"note: {note}")
    say(f"next: {found.next_command}")


def _parted(
    trace: RoutingTrace | LoadProfile, eval_path: Path | None, split_seed: int | None
) -> tuple[RoutingTrace | LoadProfile, RoutingTrace | None]:
    """As `parted`; counts have no requests, and nothing is measured with them."""
    if isinstance(trace, RoutingTrace):
        return parted(trace, eval_path, split_seed)
    if eval_path is not None or split_seed is not None:
        raise UsageError("--eval, --split-seed: TRACE holds counts of experts, and nothing is measured of it; leave them out")
    return trace, None
