"""The demo's result for a person: one table, and a sentence that says what was gained and what it cost."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from grace_moe.demo.job import DemoResult, DemoRow
from grace_moe.evaluation import compare, over_memory
from grace_moe.planning import METHODS
from grace_moe.report import AFTER, LABELS, report_content, require_report, write_report


def demo_table(result: DemoResult) -> Table:
    """One row a method; bytes are per token, over all layers, both ways."""
    title = f"OLMoE (embedded) on {result.topology} local ranks: {result.requests} requests, {result.tokens:,} tokens"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 0, 0, 1), pad_edge=False)
    table.add_column("placement", no_wrap=True)
    table.add_column("dispatch", no_wrap=True)
    for heading in ("KiB/\ntoken", "pre-\ndicted", "busiest\ndevice", "expert\nmemory", "prefill\ns", "decode\nms", "same\noutput"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result.rows:
        style = "bold" if row is result.rows[-1] else None
        table.add_row(
            LABELS.get(row.method, row.method),
            row.dispatch,
            f"{row.cross_node_bytes_per_token / 1024:.2f}",
            f"{row.predicted_cross_node_bytes_per_token / 1024:.2f}",
            f"{row.load_max_over_mean:.2f}x",
            f"{row.slots_total_over_experts:.2f}x",
            f"{row.prefill_seconds:.2f}",
            f"{row.decode_seconds_per_step * 1000:.0f}",
            "yes" if row.lossless else "NO",
            style=style,
        )
    return table


def demo_sentence(result: DemoResult) -> str:
    """Gain and cost, better or worse, from the figures of the table."""
    best, same, vanilla = result.rows[-1], result.row("linear", result.rows[-1].dispatch), result.rows[0]
    memory = best.slots_total_over_experts - 1
    balance = "better" if best.load_max_over_mean < same.load_max_over_mean else "worse"
    outputs = "every output is the same" if result.lossless else "OUTPUTS DIFFER"
    return (
        f"{LABELS.get(best.method, best.method)} sent {_less(best, same)} between the nodes "
        f"than contiguous placement with the same dispatch, "
        f"and {_less(best, vanilla)} than Transformers' own expert parallelism; {outputs}. "
        f"It cost {memory:.0%} more expert memory, and the balance is {balance}: the busiest device computes "
        f"{best.load_max_over_mean:.2f}x the mean ({same.load_max_over_mean:.2f}x contiguous)."
    )


def write_demo_report(result: DemoResult, path: Path, *, seed: int = 0, command: str = "") -> None:
    """Write the HTML page of the demo's traces and placements; the methods that it did not run, and ours without replicas, are
    planned and replayed for it, in seconds.

    Args:
        seed: the demo's own.
        command: the command line that makes the page.

    Raises:
        MissingExtraError: plotly is not installed.
        GraceError: the file can't be written.
    """
    require_report()  # before the work
    topology = result.placements[AFTER].topology
    comparison = compare(
        result.planning_trace, topology, measure_on=result.measured_trace, methods=METHODS, seed=seed, placements=result.placements
    )
    without_replicas = over_memory(comparison, (1.0,), seed=seed)
    write_report(report_content(comparison, memory=without_replicas, seed=seed, command=command), path)


def _less(row: DemoRow, other: DemoRow) -> str:
    if not other.cross_node_bytes_per_token:
        return "nothing, as there is one node,"
    change = 1 - row.cross_node_bytes_per_token / other.cross_node_bytes_per_token
    return f"{change:.0%} less" if change >= 0 else f"{-change:.0%} MORE"


def print_demo(result: DemoResult) -> None:
    """Print table, notes and sentence to stdout."""
    console = Console(soft_wrap=False)
    console.print(demo_table(result))
    console.print(
        "\nKiB/token: sent between nodes, all layers, there and back; counted at the collectives, and predicted by replay.\n"
        "Times are of processes that share this machine's cores: they show the run, not the gain on a cluster.",
        style="dim",
        highlight=False,
    )
    console.print(f"\n{demo_sentence(result)}", highlight=False)
