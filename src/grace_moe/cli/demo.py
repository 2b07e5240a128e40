"""`grace-moe demo`: the main job on the embedded model."""

import json

import click


@click.command(
    epilog="""\b
Examples:
  grace-moe demo
  grace-moe demo --topology 2x1 --json
"""
)
@click.option("--topology", default="2x2", show_default=True, help="Nodes x devices; each device is a process on this machine.")
@click.option("--requests", type=click.IntRange(min=4), default=48, show_default=True, help="Requests to run and measure.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def demo(topology: str, requests: int, seed: int, as_json: bool) -> None:
    """Record, plan, run on local ranks and verify: a real model, plain expert parallelism against GRACE."""
    from grace_moe.cli.progress import status_line
    from grace_moe.demo import DemoOptions, run_demo
    from grace_moe.demo.show import print_demo

    with status_line() as tell:
        result = run_demo(DemoOptions(topology=topology, requests=requests, seed=seed), on_status=tell)
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
    else:
        print_demo(result)
    result.verify()
