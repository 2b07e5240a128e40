"""What a simulated day cost under each policy, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from grace_moe.adapt.simulate import Day
from grace_moe.report.tables import plain_table

COLUMNS = (
    ("total_cost", "total\ncost", "{:.4f}"),
    ("cross_node_copies", "between\nnodes", "{:.4f}"),
    ("load_max_over_mean", "busiest\ndevice", "{:.3f}x"),
    ("moved_copies", "experts\nmoved", "{:,.0f}"),
    ("moved_cross_node_bytes", "GB between\nnodes", "{:.2f}"),
    ("stall_seconds", "stopped\ns", "{:.2f}"),
)
"""Name, heading and form of a column."""


def columns_of(day: Day) -> tuple[tuple[str, str, str], ...]:
    """Those that the day has: copies are unknown where counts were recorded, and leave no column."""
    return tuple(column for column in COLUMNS if column[0] != "cross_node_copies" or not day.by_counts)


def what_is_counted(day: Day) -> str:
    """What total cost weighs."""
    if day.by_counts:
        return "counts alone: total cost is the busiest device over the mean, less one, and moves; copies between nodes are unknown"
    return "copies per token between nodes, busiest device over the mean; total cost weighs both, and moves"


def measured_on(day: Day) -> str:
    """On which recordings."""
    return day.note or f"Policies saw other {'recordings' if day.by_counts else 'requests'} than those measured on."


def day_table(day: Day) -> Table:
    """One row a policy."""
    seeds = len(next(iter(day.outcomes.values())))
    table = plain_table(
        title=f"{day.scenario}: {what_is_counted(day)}",
        caption=Text(f"Means over {seeds} seed{'s' if seeds > 1 else ''}. {measured_on(day)}"),
    )
    table.add_column("policy", no_wrap=True)
    for _, heading, _ in columns_of(day):
        table.add_column(heading.replace("\n", " \n") + " ", justify="right", no_wrap=True)
    for row in day.rows():
        table.add_row(row["policy"], *cell_texts(day, row))
    return table


def cell_texts(day: Day, row: Mapping[str, Any]) -> list[str]:
    """The row of a policy as `Day.rows` has it, column by column."""
    values = {**row, "moved_cross_node_bytes": row["moved_cross_node_bytes"] / 1e9}
    return [form.format(values[name]) for name, _, form in columns_of(day)]
