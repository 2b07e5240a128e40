"""`grace-moe size`: clusters, links, batches and replicas for a model and its trace."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console

from grace_moe.cli.cost_options import backend_option, overlap_option, phase_option, served_model_option, served_sizes
from grace_moe.cli.options import budgets, eval_option, json_option, numbers, parted, shared, split_option, topology_option
from grace_moe.cli.output import say, show_json
from grace_moe.cli.progress import progress_bar
from grace_moe.cost.step import Setting
from grace_moe.evaluation import Sweep, parts_of, size, stops_mattering
from grace_moe.files import MAX_DEVICES, check_output, write_atomically
from grace_moe.report import size_table
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace


@click.command(
    "size",
    epilog="""\b
Examples:
  grace-moe size trace.safetensors --topology 1x8:h100-400g --model ./DeepSeek-V3 --nodes 1,2,4,8 --batches 4096,32768
  grace-moe size trace.safetensors --topology 1x8:h200-400g --phase decode --batches 64,256,1024,8192 --backend deepep_low_latency
  grace-moe size trace.safetensors --topology 1x8 --nodes 4 --redundancies 1,1.125 --factor factor.json
""",
)
@click.argument("trace_path", metavar="TRACE", type=click.Path(path_type=Path))
@shared(topology_option, eval_option, split_option, served_model_option, phase_option)
@click.option("--nodes", default="1,2,4,8", show_default=True, help="Numbers of nodes to try; the rest is the topology's.")
@click.option("--redundancies", default="1,1.25,1.5,2", show_default=True, help="Slots over experts to try.")
@click.option("--links", default="1", show_default=True, help="Factors on the bandwidth between nodes to try.")
@click.option("--batches", default="256,4096,32768", show_default=True, help="Tokens over all devices to try.")
@shared(backend_option, overlap_option)
@click.option("--factor", "factor_path", type=click.Path(path_type=Path), help="Write the busiest device's load, balanced over in order.")
@json_option
def size_command(
    trace_path: Path,
    topology_text: str,
    eval_path: Path | None,
    split_seed: int | None,
    model: Path | None,
    phase: str,
    nodes: str,
    redundancies: str,
    links: str,
    batches: str,
    backend: str,
    overlap: float,
    factor_path: Path | None,
    as_json: bool,
) -> None:
    """Sweep clusters for TRACE: milliseconds of a layer, memory, what limits it, and where something stops mattering.

    Experts are packed by the loads of half of the requests, and timed on the others. Times are modelled (docs/cost.md)."""
    trace, base = RoutingTrace.load(trace_path), Topology.parse(topology_text)
    setting = Setting(model=served_sizes(model, trace), phase=phase, backend=backend, overlap=overlap)
    counts = tuple(int(count) for count in numbers("--nodes", nodes, 1, MAX_DEVICES, "from 1 on"))
    sweep = Sweep(
        nodes=counts,
        redundancies=budgets("--redundancies", redundancies, base.num_devices * max(counts)),
        links=numbers("--links", links, 1e-3, 1e3, "from 0.001 to 1000"),
        batches=tuple(int(batch) for batch in numbers("--batches", batches, 1, 1e9, "from 1 on")),
    )
    planned_on, measure_on, unlike = parts_of(*parted(trace, eval_path, split_seed))
    if factor_path is not None:
        check_output(factor_path)
    with progress_bar("sizing", total=len(sweep.clusters)) as advance:
        points = size(planned_on, base, setting, sweep, on_cluster=lambda _: advance(1), measure_on=measure_on)
    notes = [*unlike, *stops_mattering(points)]
    if factor_path is not None:
        factors = [{"ep_size": p.devices, "redundancy": p.redundancy, "eplb_token_factor": p.factor} for p in points]
        write_atomically(factor_path, json.dumps(list({json.dumps(row): row for row in factors}.values()), indent=2).encode())
    if as_json:
        show_json({"rows": [point.to_dict() for point in points], "notes": notes, "assumed": setting.told(base)})
        return
    Console().print(size_table(points, setting.told(base)))
    for note in notes:
        say(f"note: {note}")
