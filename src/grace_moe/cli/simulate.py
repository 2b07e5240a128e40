"""`grace-moe simulate`: a day of shifting traffic, against policies of placement."""

from pathlib import Path

import click
from rich.console import Console

from grace_moe.adapt.simulate import POLICIES, SCENARIOS, DayOptions, StreamOptions, run_day
from grace_moe.cli.options import json_option, redundancy_option, shared, topology_option, traces_argument
from grace_moe.cli.output import show_json
from grace_moe.cli.progress import compilation_told, progress_bar
from grace_moe.errors import UsageError
from grace_moe.planning import Redundancy
from grace_moe.report import day_table
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace

_count = click.IntRange(min=1)


@click.command(
    "simulate",
    epilog=f"""\b
Examples:
  grace-moe simulate wiki.safetensors chat.safetensors --topology 2x2 --scenario shift
  grace-moe simulate wiki.safetensors --topology 4x4 --scenario bursts --interval 100 --window 50 --seeds 5
Scenarios: {", ".join(SCENARIOS)}.
Policies: {", ".join(POLICIES)}.
""",
)
@traces_argument
@shared(topology_option, redundancy_option)
@click.option("--scenario", default="shift", show_default=True, help="How the mix of the traces changes over the day.")
@click.option("--policies", default=",".join(POLICIES), show_default=True, help="Comma-separated.")
@click.option("--steps", type=_count, default=400, show_default=True, help="Of a day.")
@click.option("--requests", type=_count, default=64, show_default=True, help="Computed together.")
@click.option("--tokens-per-request", type=_count, default=8, show_default=True, help="Of a request in a step.")
@click.option("--interval", type=_count, default=3000, show_default=True, help="Steps between re-plans of eplb and loads (vLLM's default).")
@click.option("--window", type=_count, default=1000, show_default=True, help="Steps whose loads they go by (vLLM's default).")
@click.option("--expert-bytes", type=_count, default=12_582_912, show_default=True, help="Of one expert of one layer (OLMoE's).")
@click.option("--copy-bytes", type=_count, default=8192, show_default=True, help="Of a token's copy, there and back (OLMoE's).")
@click.option("--seeds", type=_count, default=1, show_default=True, help="Days, each with other requests.")
@click.option("--effort", type=float, default=1.0, show_default=True, help="Of all searches, as of plan.")
@json_option
def simulate_command(
    trace_paths: tuple[Path, ...],
    topology_text: str,
    redundancy: Redundancy | None,
    scenario: str,
    policies: str,
    steps: int,
    requests: int,
    tokens_per_request: int,
    interval: int,
    window: int,
    expert_bytes: int,
    copy_bytes: int,
    seeds: int,
    effort: float,
    as_json: bool,
) -> None:
    """Serve a day of shifting traffic under each policy: what it costs, what moves, how long serving stops.

    Each TRACE is a domain; the plans at the start are made on the first. A single trace is joined by itself with its experts renamed."""
    for index, path in enumerate(trace_paths):
        if path in trace_paths[:index]:
            raise UsageError(f"{path} is named twice; each trace is a domain of its own, so name each once")
    options = DayOptions(
        stream=StreamOptions(steps=steps, requests=requests, tokens_per_request=tokens_per_request),
        redundancy=1.25 if redundancy is None else redundancy,
        expert_bytes=expert_bytes,
        copy_bytes=copy_bytes,
        interval=interval,
        window=window,
        seeds=seeds,
        effort=effort,
    )
    chosen = tuple(dict.fromkeys(name.strip() for name in policies.split(",")))
    traces = [RoutingTrace.load(path) for path in trace_paths]
    with compilation_told(), progress_bar("simulating", total=steps * seeds * len(chosen)) as advance:
        day = run_day(traces, Topology.parse(topology_text), scenario, chosen, options, on_step=lambda: advance(1))
    if as_json:
        show_json(day.to_dict())
    else:
        Console().print(day_table(day))
