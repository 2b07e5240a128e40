"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from grace_moe.errors import printable
from grace_moe.evaluation import Comparison, ParetoPoint
from grace_moe.topology import Topology

_RULE = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
"""A line under the heading, and nothing else: the same on a terminal and in a pipe of any encoding."""

COLUMNS = (
    ("cross_node_copies", "between\nnodes", "{:.3f}", min),
    ("intra_node_copies", "inside\nnodes", "{:.3f}", min),
    ("load_max_over_mean", "busiest\ndevice", "{:.2f}x", min),
    ("idle_fraction", "idle", "{:.0%}", min),
    ("slots_total_over_experts", "expert\nmemory", "{:.2f}x", min),
    ("modelled_layer_time", "modelled\nms/layer", "{:.2f}", min),
    ("plan_seconds", "plan\ns", "{:.1f}", None),
)
"""Name, heading, form, and what is best of a comparison's columns; the last is of the machine, and differs from run to run."""
_BACKEND_COLUMN = ("backend_copies", "sent by\nbackend", "{:.3f}", min)
"""After the copies inside nodes, where a backend was asked for."""
_BATCH_COLUMNS = (
    ("batch_load_max_over_mean", "busiest\nin batch", "{:.2f}x", min),
    ("prefill_load_max_over_mean", "busiest\nprefill", "{:.2f}x", min),
    ("decode_load_max_over_mean", "busiest\ndecode", "{:.2f}x", min),
    ("active_experts_max", "active\nexperts", "{:.1f}", min),
)
"""After the busiest device, where batches were measured."""
_LOAD_COLUMN = [name for name, *_ in COLUMNS].index("load_max_over_mean")


def plain_table(*, title: str, caption: Text) -> Table:
    """An empty table with a line under its heading."""
    return Table(title=title, caption=caption, title_justify="left", caption_justify="left", box=_RULE, padding=(0, 0, 0, 1))


def comparison_table(comparison: Comparison) -> Table:
    """One row a method; the best of each column has a star, and is bold."""
    rows = table_rows(comparison)
    title = f"{comparison.topology.shape}: copies per token between and inside nodes; busiest device over the mean"
    if comparison.backend is not None:
        title += f"; sent between nodes by {comparison.backend}"
    measured, planned = comparison.measured_on, comparison.planned_on
    others = "the same requests" if measured.digest == planned.digest else "other requests"
    caption = f"* = best. Measured on {measured.num_tokens:,} tokens; planned on {planned.num_tokens:,} of {others}."
    reasons = (f"{refusal.method}: {printable(str(refusal.error))}" for refusal in comparison.refused)
    told = [caption, f"Modelled ms: {printable(comparison.assumed)}.", *map(printable, comparison.notes), *reasons]
    table = plain_table(title=title, caption=Text("\n".join(told)))
    table.add_column("method", no_wrap=True)
    by_batch = all(row["batch_load_max_over_mean"] is not None for row in rows)
    more = [column for column in _BATCH_COLUMNS if by_batch and all(row[column[0]] is not None for row in rows)]
    sent = [] if comparison.backend is None else [_BACKEND_COLUMN]
    columns = [*COLUMNS[:_LOAD_COLUMN], *sent, COLUMNS[_LOAD_COLUMN], *more, *COLUMNS[_LOAD_COLUMN + 1 :]]
    for _, heading, _, _ in columns:
        table.add_column(heading.replace("\n", " \n") + " ", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["method"], *(_cell(row, rows, *column) for column in columns))
    for refusal in comparison.refused:
        table.add_row(refusal.method, *("- " for _ in columns))
    return table


def pareto_table(points: Sequence[ParetoPoint], topology: Topology) -> Table:
    """One row a plan, by memory; those that no other beats in everything have a star."""
    title = f"{topology.shape}: what grace reaches on requests that it has not seen"
    caption = "* = no other row has less of one thing and no more of the others."
    table = plain_table(title=title, caption=Text(caption))
    for heading in ("expert \nmemory ", "price ", "between \nnodes ", "inside \nnodes ", "busiest \ndevice ", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for point in points:
        found = point.evaluation
        table.add_row(
            f"{found.slots_total_over_experts:.2f}x ",
            f"{point.price:g} ",
            f"{found.cross_node_copies:.3f} ",
            f"{found.intra_node_copies:.3f} ",
            f"{found.load_max_over_mean:.2f}x ",
            "*" if point.best else "",
            style="bold" if point.best else "",
        )
    return table


def table_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Each row's values by name, the modelled time in ms."""
    rows = [row.to_dict(comparison.topology, comparison.model, comparison.backend) for row in comparison.rows]
    for row in rows:
        row["modelled_layer_time"] *= 1000
    return rows


def cell_text(
    row: dict[str, Any], rows: list[dict[str, Any]], name: str, _: str, form: str, best: Callable[..., Any] | None
) -> tuple[str, bool]:
    """The value as printed, and whether no row prints a better one."""
    text = form.format(row[name])
    return text, best is not None and len(rows) > 1 and text == form.format(best(r[name] for r in rows))


def _cell(row: dict[str, Any], rows: list[dict[str, Any]], *column: Any) -> Text:
    """The value, then a star if it is best, else a space."""
    text, is_best = cell_text(row, rows, *column)
    return Text(f"{text}*", style="bold green") if is_best else Text(f"{text} ")


def facts_table(facts: dict[str, Any]) -> Table:
    """Two columns: what, and its value."""
    table = Table(show_header=False, box=_RULE)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), Text(printable(str(value))))  # a file's text is not markup
    return table
