"""`grace-moe demo`: the main job on the embedded model."""

from pathlib import Path

import click

from grace_moe.cli.options import command_line
from grace_moe.cli.output import say, show_json
from grace_moe.cli.progress import status_line
from grace_moe.demo import DemoOptions, run_demo
from grace_moe.demo.show import print_demo, write_demo_report
from grace_moe.errors import GraceError, MissingExtraError


@click.command(
    epilog="""\b
Examples:
  grace-moe demo
  grace-moe demo --topology 2x1 --report - --json
"""
)
@click.option("--topology", default="2x2", show_default=True, help="Nodes x devices; each device is a process on this machine.")
@click.option("--requests", type=click.IntRange(min=4), default=48, show_default=True, help="Requests to run and measure.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--report", default="grace-moe-demo.html", show_default=True, metavar="PATH", help="HTML page to write; - for none.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def demo(topology: str, requests: int, seed: int, report: str, as_json: bool) -> None:
    """Record, plan, run on local ranks and verify: a real model, plain expert parallelism against GRACE."""
    written, unwritten, command = None, None, command_line()
    with status_line() as tell:
        result = run_demo(DemoOptions(topology=topology, requests=requests, seed=seed), on_status=tell)
        if report != "-":
            tell("writing the report")
            try:
                write_demo_report(result, Path(report), seed=seed, command=command)
                written = report
            except MissingExtraError as error:
                tell(f"no report: {error}")
            except GraceError as error:
                unwritten = error  # the demo's own result comes first
    if as_json:
        show_json({**result.to_dict(), "report": written})
    else:
        print_demo(result)
        if written is not None:
            say(f"\n{written}: the same as figures; open it in a browser")
    result.verify()
    if unwritten is not None:
        raise unwritten
