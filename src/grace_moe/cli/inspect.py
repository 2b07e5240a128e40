"""`grace-moe inspect`: what is in a file of ours."""

import json
from pathlib import Path

import click

from grace_moe.errors import PlacementError


@click.command(
    "inspect",
    epilog="""\b
Examples:
  grace-moe inspect olmoe.safetensors
  grace-moe inspect plan.json --json
  grace-moe inspect 2x4
""",
)
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect_file(file: str, as_json: bool) -> None:
    """Show FILE: a trace, a placement or a topology (also a shorthand such as 2x4)."""
    from rich.console import Console

    from grace_moe.files import read_json
    from grace_moe.placement import Placement
    from grace_moe.report import describe, facts_table
    from grace_moe.topology import Topology
    from grace_moe.trace import RoutingTrace

    thing: RoutingTrace | Topology | Placement
    if file.endswith(".safetensors"):
        thing = RoutingTrace.load(file)
    elif file.endswith(".json"):
        value = read_json(Path(file), PlacementError)
        thing = Topology.parse(file) if isinstance(value, dict) and "nodes" in value else Placement.load(file)
    else:
        thing = Topology.parse(file)
    facts = describe(thing)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        Console().print(facts_table(facts))
