"""`grace-moe report`: a comparison as one HTML page."""

from pathlib import Path
from typing import Unpack

import click
from click.core import ParameterSource

from grace_moe.cli.cost_options import backend_option, batch_option, overlap_option, phase_option, served_model_option, served_sizes
from grace_moe.cli.options import (
    budgets,
    chosen_methods,
    command_line,
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
)
from grace_moe.cli.output import say, show_json
from grace_moe.cli.paths import FileCommand, OutputPath
from grace_moe.cli.progress import progress_bar
from grace_moe.cost.step import Setting
from grace_moe.errors import UsageError
from grace_moe.evaluation import SlotLimits, compare, over_memory
from grace_moe.report import AFTER, BEFORE, report_content, report_numbers, require_report, sentence, write_report

MEMORY = (1.0, 1.1, 1.25, 1.5)
"""Slots over experts that ours is shown for, where the user names none."""


@click.command(
    "report",
    cls=FileCommand,
    epilog="""\b
Examples:
  grace-moe report olmoe.safetensors --topology 2x4 -o report.html
  grace-moe report wiki.safetensors --eval chat.safetensors --topology 4x4 --memory 1,1.5,2 -o report.html
  grace-moe report trace.safetensors --topology 4x8:h100-400g --model ./DeepSeek-V3 --phase decode -o report.html   # a verdict first
""",
)
@click.argument("trace_path", metavar="TRACE", type=click.Path(path_type=Path))
@shared(topology_option, eval_option, split_option, served_model_option, phase_option, batch_option, backend_option, overlap_option)
@shared(methods_option, redundancy_option, slots_option, expert_bytes_option, seed_option)
@click.option("--memory", metavar="X,Y,...", help="Redundancies to show grace with.  [default: 1.0,1.1,1.25,1.5]")
@click.option("-o", "--output", type=OutputPath(), required=True, help="HTML file to write.")
@shared(json_option)
def report_command(
    trace_path: Path,
    topology_text: str,
    eval_path: Path | None,
    split_seed: int | None,
    model: Path | None,
    phase: str,
    batch: int | None,
    backend: str,
    overlap: float,
    methods: str | None,
    seed: int,
    memory: str | None,
    output: Path,
    as_json: bool,
    **limits: Unpack[SlotLimits],
) -> None:
    """Compare methods on TRACE and show what was gained as one HTML page that works offline. linear and grace are always compared.

    With --model it begins with a verdict in milliseconds, and shows what other clusters would take."""
    require_report()
    if model is None:
        _refuse_without_model("phase", "batch", "backend", "overlap")
    chosen = tuple(dict.fromkeys((AFTER, *chosen_methods(methods), BEFORE)))
    trace, topology, measure_on = read_compared((trace_path,), topology_text, eval_path, split_seed)
    setting = None
    if model is not None:
        setting = Setting(model=served_sizes(model, trace), phase=phase, batch_tokens=batch, backend=backend, overlap=overlap)
    devices = topology.num_devices
    tried = tuple(b for b in MEMORY if b <= devices) if memory is None else budgets("--memory", memory, devices)
    with progress_bar("comparing", total=len(chosen) + len(tried)) as advance:
        comparison = compare(
            trace,
            topology,
            measure_on=measure_on,
            methods=chosen,
            seed=seed,
            on_method=lambda _: advance(1),
            **limits,
        )
        comparison.require(BEFORE, AFTER)
        sweep = over_memory(comparison, tried, expert_bytes=limits.get("expert_bytes"), seed=seed, on_budget=lambda _: advance(1))
    content = report_content(comparison, memory=sweep, seed=seed, command=command_line(), setting=setting)
    write_report(content, output)
    if as_json:
        show_json({"report": str(output), **report_numbers(content)})
    else:
        if content.served is not None:
            say(f"{content.served.diagnosis.verdict}: {content.served.diagnosis.reason}")
        say(sentence(content), comparison.notes)
        say(f"{output}: open it in a browser")


def _refuse_without_model(*names: str) -> None:
    """Raise UsageError where an option was given that says how a model is served, and no model."""
    context = click.get_current_context()
    given = [f"--{name}" for name in names if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if given:
        raise UsageError(f"{', '.join(given)}: of the verdict, which needs --model; name the model's folder or config.json")
