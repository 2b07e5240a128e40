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


def day_table(day: Day) -> Table:
    """One row a policy."""
    seeds = len(next(iter(day.outcomes.values())))
    table = plain_table(
        title=f"{day.scenario}: copies per token between nodes, busiest device over the mean; total cost weighs both, and moves",
        caption=Text(f"Means over {seeds} seed{'s' if seeds > 1 else ''}; policies saw other requests than those measured on."),
    )
    table.add_column("policy", no_wrap=True)
    for _, heading, _ in COLUMNS:
        table.add_column(heading.replace("\n", " \n") + " ", justify="right", no_wrap=True)
    for row in day.rows():
        table.add_row(row["policy"], *cell_texts(row))
    return table


def cell_texts(row: Mapping[str, Any]) -> list[str]:
    """The row of a policy as `Day.rows` has it, column by column; `-` where something is unknown."""
    values = {**row, "moved_cross_node_bytes": row["moved_cross_node_bytes"] / 1e9}
    return ["-" if values[name] is None else form.format(values[name]) for name, _, form in COLUMNS]
