"""`grace-moe calibrate`: links, transports and expert kernels fitted to measured times, with how far off each fit is."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from grace_moe.cli.options import json_option
from grace_moe.cli.output import say, show_json
from grace_moe.cli.paths import FileCommand, OutputPath
from grace_moe.cli.progress import progress_bar
from grace_moe.cost.calibrate import calibrate
from grace_moe.cost.profile import Profile, read_profile
from grace_moe.cost.tables import Table, is_table, read_table
from grace_moe.report import fits_table
from grace_moe.topology import Topology


@click.command(
    "calibrate",
    cls=FileCommand,
    epilog="""\b
Examples:
  grace-moe calibrate -o h100.json deepep-normal.csv deepep-low-latency.csv --topology 4x8:h100-400g
  grace-moe calibrate -o cluster.json experts.csv nccl.csv --topology cluster.json --machine h200_sxm
  grace-moe calibrate -o mine.json profile.json --topology 2x2     # of grace-moe run --profile
docs/cost.md has the columns of tables.
""",
)
@click.argument("sources", metavar="PROFILE|TABLE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=OutputPath(), help="Topology file to write.")
@click.option("--topology", "base", default="2x8", show_default=True, metavar="BASE", help="NxG, NxG:preset, or a file: nodes and links.")
@click.option("--machine", metavar="NAME", help="Store what was fitted to this machine only.  [default: the only one, else the base's]")
@json_option
def calibrate_command(sources: tuple[Path, ...], output: Path, base: str, machine: str | None, as_json: bool) -> None:
    """Fit the cost model to tables of measured times, and store it in a topology file.

    Each machine, version and kernel is fitted by itself. Errors are relative to what was measured."""
    topology = Topology.parse(base)
    tables = [_read(path) for path in sources]
    with progress_bar("fitting", total=len(tables)) as advance:
        found = calibrate(tables, on_fit=lambda _: advance(1))
    stored, chosen = found.onto(topology, machine)
    stored.save(output)
    if as_json:
        show_json({"fits": [dict(fit) for fit in found.calibration.fits], "machine": chosen})
    else:
        Console().print(fits_table(found.calibration.fits))
        others = [name for name in found.machines if name != chosen]
        notes = [f"measured too: {', '.join(others)}; store one of them with --machine"] if others else []
        say(f"{output}: calibrated as {chosen}; use it as --topology", notes)


def _read(path: Path) -> Table | Profile:
    return read_table(path) if is_table(path) else read_profile(path)
