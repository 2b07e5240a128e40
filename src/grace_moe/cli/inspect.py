"""`grace-moe inspect`: what is in a file of ours."""

from pathlib import Path

import click
from rich.console import Console

from grace_moe.cli.options import expert_bytes_option, json_option, shared
from grace_moe.cli.output import show_json
from grace_moe.errors import InputFileError, UsageError
from grace_moe.files import read_json, starts_with
from grace_moe.placement import Placement, difference
from grace_moe.report import describe, describe_difference, facts_table
from grace_moe.topology import Topology
from grace_moe.trace import LoadProfile, RoutingTrace, read_recording


@click.command(
    "inspect",
    epilog="""\b
Examples:
  grace-moe inspect olmoe.safetensors
  grace-moe inspect plan.json --json
  grace-moe inspect 2x4
  grace-moe inspect plan2.json --against plan.json --expert-bytes 12582912
""",
)
@click.argument("file")
@click.option("--against", type=click.Path(path_type=Path), help="Placement in use: show what devices must load to go over to FILE.")
@shared(expert_bytes_option, json_option)
def inspect_file(file: str, against: Path | None, expert_bytes: int | None, as_json: bool) -> None:
    """Show FILE: a trace, a placement or a topology (also a shorthand such as 2x4)."""
    if against is None:
        if expert_bytes is not None:
            raise UsageError("--expert-bytes counts what must move; give --against too, or leave it out")
        facts = describe(_load(file))
    else:
        facts = describe_difference(difference(Placement.load(file), Placement.load(against)), expert_bytes)
    if as_json:
        show_json(facts)
    else:
        Console().print(facts_table(facts))


def _load(file: str) -> RoutingTrace | LoadProfile | Topology | Placement:
    """By ending, or by its first byte where it has neither of ours."""
    path = Path(file)
    if file.endswith(".safetensors"):
        return read_recording(path)
    if not file.endswith(".json"):
        if not path.is_file():
            return Topology.parse(file)
        if not _starts_like_json(path):
            return read_recording(path)
    value = read_json(path, InputFileError)
    if isinstance(value, dict) and "nodes" in value:
        return Topology.from_dict(value, source=file)
    return Placement.load(path)


def _starts_like_json(path: Path) -> bool:
    return starts_with(path, 1, InputFileError) in (b"{", b"")  # a safetensors file starts with a multiple of 8, its header's size
