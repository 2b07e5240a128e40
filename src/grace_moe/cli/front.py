"""`grace-moe front`: stand before an engine's server and send each request where its experts are."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from grace_moe.choice import Budget
from grace_moe.cli.options import FiniteRange
from grace_moe.cli.output import say
from grace_moe.cli.paths import FileCommand
from grace_moe.frontend import require_frontend
from grace_moe.placement import Placement
from grace_moe.trace import RoutingTrace

if TYPE_CHECKING:
    from grace_moe.frontend.dispatcher import Dispatcher


@click.command(
    "front",
    cls=FileCommand,
    epilog="""\b
Examples:
  grace-moe front --placement plan.json --trace trace.safetensors --model ./OLMoE-1B-7B --engine vllm --upstream http://127.0.0.1:8000
  grace-moe front --placement plan.json --engine sglang --upstream http://127.0.0.1:30000 --ranks 8 --port 9000
  curl http://127.0.0.1:8001/grace/status
""",
)
@click.option("--placement", "placement_path", type=click.Path(path_type=Path), required=True, help="Plan that the engine serves.")
@click.option("--upstream", required=True, metavar="URL", help="The engine's own server.")
@click.option("--engine", type=click.Choice(["vllm", "sglang"]), required=True, help="What runs there.")
@click.option(
    "--trace",
    "trace_path",
    type=click.Path(path_type=Path),
    help="Trace with token ids, to learn from where prompts should go.  [default: requests are only evened out]",
)
@click.option("--model", type=click.Path(path_type=Path), help="Folder with the model's tokenizer.json, for prompts that are text.")
@click.option("--ranks", type=click.IntRange(min=1), help="Ranks of data parallelism.  [default: the placement's devices]")
@click.option(
    "--budget",
    type=FiniteRange(min=1),
    default=Budget.tokens,
    show_default=True,
    help="Most tokens that a rank may have been given above the mean when it takes another request.",
)
@click.option(
    "--horizon",
    type=FiniteRange(min=1),
    default=Budget.horizon,
    show_default=True,
    help="Tokens of all ranks after which what a rank was given counts 1/e.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8001, show_default=True, help="Port to listen on; 0 = any that is free.")
@click.option("--max-body", type=click.IntRange(min=1), default=64 * 2**20, show_default=True, help="Most bytes of a request.")
@click.option("--json", "as_json", is_flag=True, help="Print what it does as JSON.")
def front(
    placement_path: Path,
    upstream: str,
    engine: str,
    trace_path: Path | None,
    model: Path | None,
    ranks: int | None,
    budget: float,
    horizon: float,
    host: str,
    port: int,
    max_body: int,
    as_json: bool,
) -> None:
    """Forward every request to an engine's server, and name the rank that should take it."""
    require_frontend()
    from grace_moe.frontend.serve import check_upstream, dispatcher_of, serve

    address = check_upstream(upstream)
    trace = None if trace_path is None else RoutingTrace.load(trace_path)
    dispatcher = dispatcher_of(
        Placement.load(placement_path), engine, trace=trace, model=model, ranks=ranks, budget=Budget(tokens=budget, horizon=horizon)
    )
    told = partial(_tell, upstream=address, dispatcher=dispatcher, as_json=as_json)
    serve(dispatcher, address, host=host, port=port, max_body_bytes=max_body, on_listening=told)


def _tell(own: str, upstream: str, dispatcher: Dispatcher, as_json: bool) -> None:
    """Say where it listens, and what it knows of prompts."""
    nodes = dispatcher.placer.node_of_rank.tolist()
    known = 0 if dispatcher.costs is None else len(dispatcher.costs.known)
    if as_json:
        click.echo(json.dumps({"listening": own, "upstream": upstream, "node_of_rank": nodes, "tokens_known": known}))
    else:
        notes = () if known else ("without a trace of token ids nothing tells where prompts should go: requests are only evened out",)
        say(f"{own} -> {upstream}: {len(nodes)} ranks on {max(nodes) + 1} nodes, {known:,} tokens known", notes)
