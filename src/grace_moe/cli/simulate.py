"""`grace-moe simulate`: a day of shifting traffic, against policies of placement."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click
from rich.console import Console

from grace_moe.adapt import AdaptStatus
from grace_moe.adapt.simulate import POLICIES, SCENARIOS, Day, DayOptions, Following, Policy, StreamOptions, run_day, run_load_day
from grace_moe.adapt.telemetry import Follower, MetricsServer, TrafficView, status_line
from grace_moe.cli.options import command_line, json_option, redundancy_option, shared, topology_option, traces_argument
from grace_moe.cli.output import show_json
from grace_moe.cli.paths import FileCommand, OutputPath
from grace_moe.cli.progress import compilation_told, progress_bar, tell_metrics
from grace_moe.errors import TraceError, UsageError, printable
from grace_moe.files import write_atomically
from grace_moe.planning import Redundancy
from grace_moe.report import day_table, require_report, write_day_report
from grace_moe.topology import Topology
from grace_moe.trace import LoadProfile, RoutingTrace, read_recording

_count = click.IntRange(min=1)


@click.command(
    "simulate",
    cls=FileCommand,
    epilog=f"""\b
Examples:
  grace-moe simulate wiki.safetensors chat.safetensors --topology 2x2 --scenario shift
  grace-moe simulate wiki.safetensors --topology 4x4 --scenario bursts --interval 100 --window 50 --seeds 5
  grace-moe simulate wiki.safetensors chat.safetensors --topology 2x2 --seeds 3 --report day.html --log decisions.jsonl
  grace-moe simulate counts_of_books_*.safetensors counts_of_code_*.safetensors --topology 2x8 --top-k 8
Scenarios: {", ".join(SCENARIOS)}.
Policies: {", ".join(POLICIES)}.
""",
)
@traces_argument
@shared(topology_option, redundancy_option)
@click.option("--scenario", default="shift", show_default=True, help="How the mix of the traces changes over the day.")
@click.option("--policies", default=",".join(POLICIES), show_default=True, help="Comma-separated.")
@click.option("--steps", type=_count, default=400, show_default=True, help="Of a day.")
@click.option("--requests", type=_count, default=64, show_default=True, help="Computed together.")
@click.option("--tokens-per-request", type=_count, default=8, show_default=True, help="Of a request in a step.")
@click.option("--interval", type=_count, default=3000, show_default=True, help="Steps between re-plans of eplb and loads (vLLM's default).")
@click.option("--window", type=_count, default=1000, show_default=True, help="Steps whose loads they go by (vLLM's default).")
@click.option("--expert-bytes", type=_count, default=12_582_912, show_default=True, help="Of one expert of one layer (OLMoE's).")
@click.option("--copy-bytes", type=_count, default=8192, show_default=True, help="Of a token's copy, there and back (OLMoE's).")
@click.option("--seeds", type=_count, default=1, show_default=True, help="Days, each with other requests.")
@click.option("--report", "report_path", type=OutputPath(), metavar="HTML", help="Write a page of figures, seeds and spread.")
@click.option("--log", "log_path", type=OutputPath(), metavar="FILE", help="Write a JSON line for each decision of grace.")
@click.option("--metrics-port", type=click.IntRange(0, 65_535), metavar="PORT", help="Serve what grace does to Prometheus meanwhile.")
@click.option("--top-k", type=_count, metavar="K", help="Experts that a token chooses: for recordings of counts, which do not tell.")
@click.option("--effort", type=float, default=1.0, show_default=True, help="Of all searches, as of plan.")
@json_option
def simulate_command(
    trace_paths: tuple[Path, ...],
    topology_text: str,
    redundancy: Redundancy | None,
    scenario: str,
    policies: str,
    steps: int,
    requests: int,
    tokens_per_request: int,
    interval: int,
    window: int,
    expert_bytes: int,
    copy_bytes: int,
    seeds: int,
    report_path: Path | None,
    log_path: Path | None,
    metrics_port: int | None,
    top_k: int | None,
    effort: float,
    as_json: bool,
) -> None:
    """Serve a day of shifting traffic under each policy: what it costs, what moves, how long serving stops.

    Each TRACE is a domain; the plans at the start are made on the first. A single trace is joined by itself with its experts renamed.
    Recordings of counts tell balance alone; those of one --dataset (of import) are shards of one domain."""
    for index, path in enumerate(trace_paths):
        if path in trace_paths[:index]:
            raise UsageError(f"{path} is named twice; each trace is a domain of its own, so name each once")
    options = DayOptions(
        stream=StreamOptions(steps=steps, requests=requests, tokens_per_request=tokens_per_request),
        redundancy=1.25 if redundancy is None else redundancy,
        expert_bytes=expert_bytes,
        copy_bytes=copy_bytes,
        interval=interval,
        window=window,
        seeds=seeds,
        effort=effort,
    )
    chosen = tuple(dict.fromkeys(name.strip() for name in policies.split(",")))
    run = _run_on([read_recording(path) for path in trace_paths], top_k, effort)
    if "grace" not in chosen and (log_path is not None or metrics_port is not None):
        raise UsageError("--log and --metrics-port show what grace does, and it is not among the policies; add it, or leave them out")
    if report_path is not None:
        require_report()
    operator = _Operator(options)
    with (
        compilation_told(),
        operator.metrics(metrics_port),
        progress_bar("simulating", total=steps * seeds * len(chosen)) as advance,
    ):

        def on_step(policy: Policy) -> None:
            advance(1)
            operator.step(policy)

        day = run(Topology.parse(topology_text), scenario, chosen, options, on_step=on_step)
    status = operator.status()
    if status is not None and (log_path is not None or metrics_port is not None):
        click.echo(printable(f"grace, last day: {status_line(status)}"), err=True)
    if log_path is not None:
        write_atomically(log_path, "".join(f"{line}\n" for line in operator.lines).encode())
    if report_path is not None:
        write_day_report(day, report_path, command_line())
    if as_json:
        show_json(day.to_dict())
    else:
        Console().print(day_table(day))


def _run_on(recordings: Sequence[RoutingTrace | LoadProfile], top_k: int | None, effort: float) -> Callable[..., Day]:
    """What runs a day of tokens, or of counts.

    Raises:
        TraceError: tokens and counts together.
        UsageError: an option that they have no use for, or lack.
    """
    traces = [recording for recording in recordings if isinstance(recording, RoutingTrace)]
    profiles = [recording for recording in recordings if isinstance(recording, LoadProfile)]
    if traces and profiles:
        problem = f"counts, but {traces[0].source} has tokens"
        raise TraceError(profiles[0].source, "counts_only", problem, "give recordings of tokens alone, or of counts alone")
    if traces:
        if top_k is not None:
            raise UsageError("--top-k: for recordings of counts; traces of tokens tell, so leave it out")
        return partial(run_day, traces)
    if top_k is None:
        raise UsageError(f"{profiles[0].source}: counts only, which do not tell how many experts a token chooses; give --top-k")
    if effort != 1.0:
        raise UsageError("--effort: of searches for placements by tokens; with counts there are none, so leave it out")
    return partial(run_load_day, profiles, top_k=top_k)


class _Operator:
    """Follows the policy grace, one day after another, for those who watch."""

    def __init__(self, options: DayOptions) -> None:
        self._options = options
        self._followed: Following | None = None
        self._follower: Follower | None = None
        self._views = 0
        self.lines: list[str] = []
        """Of the log, of all days."""

    def step(self, policy: Policy) -> None:
        """After each step of any policy."""
        if not isinstance(policy, Following):
            return
        if policy is not self._followed:
            self._followed = policy
            self._follower = Follower(
                policy.adapter, expert_bytes=self._options.expert_bytes, log=self.lines.append, view_every=self._views
            )
        assert self._follower is not None
        self._follower.step()

    @contextmanager
    def metrics(self, port: int | None) -> Iterator[None]:
        """Serves them on the port meanwhile; None = not at all."""
        if port is None:
            yield
            return
        self._views = 10
        server = MetricsServer(self.status, self._view, copy_bytes=self._options.copy_bytes, port=port)
        tell_metrics(server.port)
        try:
            yield
        finally:
            server.close()

    def status(self) -> AdaptStatus | None:
        """Of the day that runs, or the last; None before the first."""
        return None if self._follower is None else self._follower.status()

    def _view(self) -> TrafficView | None:
        return None if self._follower is None else self._follower.view
