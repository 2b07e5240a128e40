"""`grace-moe compare`: methods side by side, measured on requests that were not planned on."""

from dataclasses import replace
from pathlib import Path
from typing import Unpack

import click
from rich.console import Console

from grace_moe.cli.cost_options import served_model_option, served_sizes
from grace_moe.cli.options import (
    backend_option,
    chosen_methods,
    eval_option,
    expert_bytes_option,
    json_option,
    methods_option,
    read_compared,
    redundancy_option,
    seed_option,
    shared,
    slots_option,
    split_option,
    topology_option,
    traces_argument,
)
from grace_moe.cli.output import show_json
from grace_moe.cli.progress import compilation_told, progress_bar
from grace_moe.evaluation import SlotLimits, compare
from grace_moe.planning import METHODS
from grace_moe.report import comparison_table


@click.command(
    "compare",
    epilog=f"""\b
Examples:
  grace-moe compare olmoe.safetensors --topology 2x4
  grace-moe compare olmoe.safetensors --topology 2x4 --methods eplb,eplb+lplb,grace,grace+metro
  grace-moe compare olmoe.safetensors --topology 2x4 --methods eplb,grace --backend deepep_low_latency
  grace-moe compare wiki.safetensors chat.safetensors --topology 4x4 --methods eplb,grace
  grace-moe compare olmoe.safetensors --topology 2x8:h100-400g --model ./DeepSeek-V3   # ms of its sizes
  grace-moe compare wiki.safetensors --eval chat.safetensors --topology 4x4 --methods linear,eplb,grace
Methods: {", ".join(METHODS)}.
METHOD+lplb or METHOD+metro chooses the replicas of a method's placement batch by batch;
grace+requests plans for, and measures with, requests placed on nodes by their first tokens;
grace+decode uses fewer replicas in decode, so that fewer distinct experts are active on a device.
""",
)
@traces_argument
@shared(topology_option, eval_option, split_option, methods_option, served_model_option, backend_option)
@shared(redundancy_option, slots_option, expert_bytes_option, seed_option, json_option)
def compare_command(
    trace_paths: tuple[Path, ...],
    topology_text: str,
    eval_path: Path | None,
    split_seed: int | None,
    methods: str | None,
    model: Path | None,
    backend: str | None,
    seed: int,
    as_json: bool,
    **limits: Unpack[SlotLimits],
) -> None:
    """Plan on TRACE with each method and measure traffic, balance and memory on other requests.

    Several traces of one model weigh the same."""
    chosen = chosen_methods(methods)
    trace, topology, measure_on = read_compared(trace_paths, topology_text, eval_path, split_seed)
    with compilation_told(), progress_bar("comparing", total=len(chosen)) as advance:
        comparison = compare(
            trace,
            topology,
            measure_on=measure_on,
            methods=chosen,
            seed=seed,
            backend=backend,
            on_method=lambda _: advance(1),
            **limits,
        )
    if model is not None:
        comparison = replace(comparison, model=served_sizes(model, trace))
    if as_json:
        show_json(comparison.to_dict())
    else:
        Console().print(comparison_table(comparison))
