"""`grace-moe discover`: what the cluster is, declared against measured."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import click
from rich.console import Console

from grace_moe.cli.options import json_option
from grace_moe.cli.output import say, show_json
from grace_moe.cli.paths import FileCommand, OutputPath
from grace_moe.cli.progress import progress_of
from grace_moe.cli.rank_end import end_with
from grace_moe.discover.finding import Discovery, to_dict
from grace_moe.discover.reading import read_declared
from grace_moe.errors import UsageError
from grace_moe.report import tiers_table
from grace_moe.runtime import require_runtime
from grace_moe.runtime.job import TIMEOUT_SECONDS
from grace_moe.runtime.job.local_ranks import environment_of_ranks


@click.command(
    "discover",
    cls=FileCommand,
    epilog="""\b
Examples:
  grace-moe discover -o topology.json --local 4
  torchrun --nnodes 2 --nproc-per-node 8 --master-addr 10.0.0.1 --node-rank 0 -m grace_moe discover -o topology.json
  srun nvidia-smi topo -m > links.txt; torchrun ... -m grace_moe discover -o topology.json --declared links.txt --declared topology.conf
Every rank takes part; rank 0 writes the file. docs/discover.md says how to read it.
""",
)
@click.option("-o", "--output", required=True, type=OutputPath(), help="Topology file to write.")
@click.option("--local", type=click.IntRange(min=2, max=64), metavar="N", help="Start N ranks here; without it, join torchrun's.")
@click.option(
    "--declared",
    multiple=True,
    type=click.Path(),
    metavar="T",
    help="What is declared: NxG, a topology, Slurm's topology.conf, Topograph's JSON, what nvidia-smi topo -m printed. May be repeated.",
)
@click.option(
    "--timeout", type=click.FloatRange(min=1), default=TIMEOUT_SECONDS, show_default=True, help="Seconds that a rank waits for another."
)
@json_option
def discover_command(output: Path, local: int | None, declared: tuple[str, ...], timeout: float, as_json: bool) -> None:
    """Measure bandwidth and latency between ranks, find the tiers of links, and compare them with what is declared.

    Contradictions are printed first; the file has what was measured. Read it, and correct it where you know better."""
    require_runtime()
    under_launcher = os.environ.get("WORLD_SIZE") is not None
    if local is None and not under_launcher:
        raise UsageError("--local: not given, and this is not a rank of torchrun; give --local N, or start it with torchrun")
    if local is not None and under_launcher:
        raise UsageError("--local: given on a rank of torchrun; leave it out")
    if local is not None:
        options = [word for text in declared for word in ("--declared", text)] + ["--timeout", str(timeout)] + ["--json"] * as_json
        _start_local(local, ["-o", str(output), *options])
    _as_a_rank(output, declared, timeout, as_json)


def _start_local(ranks: int, options: list[str]) -> NoReturn:
    """The same command under torchrun, with that many ranks of this machine."""
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m", "grace_moe", "discover"]
    sys.exit(subprocess.run([sys.executable, *start, *options], env=environment_of_ranks(ranks), check=False).returncode)


def _as_a_rank(output: Path, declared: Sequence[str], timeout: float, as_json: bool) -> NoReturn:
    """Take part as one of torchrun's ranks; the process ends here. Rank 0 alone reads what is declared, and shows what was found."""
    from grace_moe.runtime.job.probe import discover_together
    from grace_moe.runtime.job.ranks import joined, leave

    member = None
    try:
        with joined(timeout=timedelta(seconds=timeout)) as member, progress_of("measuring") as reach:
            read = [read_declared(text) for text in declared] if member.rank == 0 else []
            found, topology = discover_together(member, read, on_round=reach if member.rank == 0 else None)
            if member.rank == 0:
                topology.save(output)
        if member.rank == 0:
            _show(output, found, as_json)
    except Exception as error:
        end_with(error, member)
    leave(0)


def _show(output: Path, found: Discovery, as_json: bool) -> None:
    if as_json:
        show_json(to_dict(found))
        return
    for sentence in found.contradictions:
        say(f"contradiction: {sentence}")
    Console().print(tiers_table(found))
    say(f"{output}: read it and correct it; use it as --topology", found.notes)
