"""`grace-moe pareto`: what traffic, balance and memory there are to choose from."""

from pathlib import Path

import click
from rich.console import Console

from grace_moe.cli.options import (
    budgets,
    eval_option,
    json_option,
    numbers,
    read_compared,
    seed_option,
    shared,
    split_option,
    topology_option,
)
from grace_moe.cli.output import say, show_json
from grace_moe.cli.progress import compilation_told, progress_of
from grace_moe.evaluation import pareto, parts_of
from grace_moe.report import pareto_table


@click.command(
    "pareto",
    epilog="""\b
Examples:
  grace-moe pareto olmoe.safetensors --topology 2x4
  grace-moe pareto olmoe.safetensors --topology 4x4 --prices 1,4,16 --redundancies 1,1.25
Take the row you like: grace-moe plan ... --option price=P --option tolerance=1e6 --redundancy R
""",
)
@click.argument("trace_path", metavar="TRACE", type=click.Path(path_type=Path))
@shared(topology_option, eval_option, split_option)
@click.option("--prices", default="0.5,2,8,32", show_default=True, help="Prices on imbalance to try: more buys balance with traffic.")
@click.option("--redundancies", default="1,1.125,1.25,1.5", show_default=True, help="Slots over experts to try.")
@shared(seed_option, json_option)
def pareto_command(
    trace_path: Path,
    topology_text: str,
    eval_path: Path | None,
    split_seed: int | None,
    prices: str,
    redundancies: str,
    seed: int,
    as_json: bool,
) -> None:
    """The frontier of traffic, balance and memory that method grace reaches on TRACE."""
    trace, topology, measure_on = read_compared((trace_path,), topology_text, eval_path, split_seed)
    trace, measure_on, notes = parts_of(trace, measure_on)
    tried = numbers("--prices", prices, 0, 1e6, "from 0 to 1e6"), budgets("--redundancies", redundancies, topology.num_devices)
    with compilation_told(), progress_of("planning") as reach:
        points = pareto(trace, topology, measure_on=measure_on, prices=tried[0], redundancies=tried[1], seed=seed, progress=reach)
    if as_json:
        rows = [{"price": p.price, "redundancy": p.redundancy, "best": p.best, **p.evaluation.to_dict()} for p in points]
        show_json({"topology": topology.shape, "rows": rows, **({"notes": list(notes)} if notes else {})})
    else:
        Console().print(pareto_table(points, topology))
        for note in notes:
            say(f"note: {note}")
