"""From a placement and a trace to a proxy that listens."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn

from grace_moe.choice import Budget, RequestPlacer
from grace_moe.errors import UsageError
from grace_moe.frontend.dispatcher import Dispatcher
from grace_moe.frontend.prompt_costs import PromptCosts
from grace_moe.frontend.prompts import PromptReader
from grace_moe.frontend.proxy import proxy
from grace_moe.placement import Placement
from grace_moe.trace import RoutingTrace


def dispatcher_of(
    placement: Placement,
    engine: str,
    *,
    trace: RoutingTrace | None = None,
    model: Path | None = None,
    ranks: int | None = None,
    budget: Budget | None = None,
) -> Dispatcher:
    """What gives requests their ranks.

    Args:
        engine: one of `dispatcher.PLACED`.
        trace: with `token_ids`: what prompts' tokens cost is learnt from it. None = requests are only evened out.
        model: folder with the `tokenizer.json` of the model that is served; None = only prompts of token ids can be told apart.
        ranks: of data parallelism; None = as many as the placement has devices.

    Raises:
        UsageError: ranks don't fit the topology.
        MismatchError: the placement carries no costs of sources, or is of another model than the trace.
        TraceError: the trace doesn't say what its tokens are.
        ModelError: no tokenizer there.
    """
    costs = None if trace is None else PromptCosts(placement, trace)
    return Dispatcher(engine, RequestPlacer(placement.topology, ranks, budget), PromptReader(model), costs)


def check_upstream(address: str) -> str:
    """The address of a server, without a path. Raises UsageError where it is none."""
    try:
        parts = urlsplit(address)
        whole = bool(parts.scheme in ("http", "https") and parts.hostname and parts.path in ("", "/") and not parts.query)
        whole = whole and parts.port != 0
    except ValueError:  # no number for a port
        whole = False
    if not whole:
        raise UsageError(f"--upstream: {address!r} is not the address of a server; write it like http://127.0.0.1:8000")
    return address.rstrip("/")


def serve(dispatcher: Dispatcher, upstream: str, *, host: str, port: int, max_body_bytes: int, on_listening: Callable[[str], None]) -> None:
    """Listen until interrupted; requests that are under way are finished first.

    Args:
        port: 0 = any that is free.
        on_listening: told the address once connections are taken.

    Raises:
        UsageError: the address can't be listened on.
    """
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048)
    except OSError as error:
        raise UsageError(f"--host {host} --port {port}: {error.strerror}; choose another") from error
    with listening:
        on_listening(f"http://{host}:{listening.getsockname()[1]}")
        config = uvicorn.Config(proxy(dispatcher, upstream, max_body_bytes), log_level="warning", timeout_keep_alive=75)
        uvicorn.Server(config).run(sockets=[listening])
