"""Figure of traffic against balance: every method, and ours over memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grace_moe.evaluation import ComparisonRow
from grace_moe.report.content import AFTER, BEFORE, ReportContent
from grace_moe.report.plot_labels import Point, label_sides, padded
from grace_moe.report.plot_style import MUTED, OURS, THEIRS, styled_figure
from grace_moe.report.words import label

if TYPE_CHECKING:
    import plotly.graph_objects as go

_AROUND = (0.16, 0.10)
"""Share of the range of points that is left free beside them, across and up."""


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Points drawn alike."""

    rows: list[ComparisonRow]
    labels: list[str]
    marker: dict[str, Any]
    font: dict[str, Any]


def frontier_figure(content: ReportContent) -> go.Figure:
    """Left is less traffic, down is better balance."""
    import plotly.graph_objects as go

    groups = _groups(content)
    line = [_place(content, row) for row in content.memory]
    labelled = (groups[3], groups[1], groups[0], groups[2])  # in the order in which labels choose their sides
    points = [_place(content, row) for group in labelled for row in group.rows]
    sides = iter(label_sides(points, [text for group in labelled for text in group.labels], line, _AROUND))
    side_of = {id(group): [next(sides) for _ in group.rows] for group in labelled}
    traces = []
    if groups[2].rows:
        x, y = zip(*line, strict=True)
        traces.append(go.Scatter(x=x, y=y, mode="lines", line={"color": OURS, "width": 2}, hoverinfo="skip", name="GRACE over memory"))
    traces += [_scatter(content, group, side_of[id(group)]) for group in groups if group.rows]
    figure = styled_figure(traces, height=460)
    figure.update_layout(showlegend=False)
    where = "between nodes" if content.traffic == "cross_node_copies" else "between devices"
    ranges = [list(padded([point[axis] for point in points], share)) for axis, share in enumerate(_AROUND)]
    figure.update_xaxes(title_text=f"← fewer copies of a token {where}", range=ranges[0], showgrid=True)
    figure.update_yaxes(title_text="← more even: busiest device over the mean", range=ranges[1], showgrid=True)
    return figure


def _groups(content: ReportContent) -> tuple[_Group, _Group, _Group, _Group]:
    """Other methods, contiguous placement, ours over memory, ours; later ones lie on top."""
    ours = content.after
    others = [row for row in content.comparison.rows if row.method not in (BEFORE, AFTER)]
    budgets = [row for row in content.memory if row is not ours]
    name = f"{label(AFTER)} {_memory(ours)}" if budgets else label(AFTER)
    return (
        _Group(rows=others, labels=[label(row.method) for row in others], marker={"size": 11, "color": MUTED}, font={"size": 12}),
        _Group(
            rows=[content.before],
            labels=[label(BEFORE)],
            marker={"size": 12, "color": THEIRS, "symbol": "square"},
            font={"size": 12},
        ),
        _Group(
            rows=budgets,
            labels=[_memory(row) for row in budgets],
            marker={"size": 9, "color": OURS},
            font={"size": 11, "color": OURS},
        ),
        _Group(rows=[ours], labels=[name], marker={"size": 17, "color": OURS}, font={"size": 15, "color": OURS}),
    )


def _scatter(content: ReportContent, group: _Group, sides: list[str]) -> Any:
    import plotly.graph_objects as go

    x, y = zip(*(_place(content, row) for row in group.rows), strict=True)
    return go.Scatter(
        x=x,
        y=y,
        mode="markers+text",
        marker=group.marker,
        text=group.labels,
        textposition=sides,
        textfont=group.font,
        hovertext=[_hover(content, row) for row in group.rows],
        hoverinfo="text",
        cliponaxis=False,
    )


def _place(content: ReportContent, row: ComparisonRow) -> Point:
    return getattr(row.evaluation, content.traffic), row.evaluation.load_max_over_mean


def _hover(content: ReportContent, row: ComparisonRow) -> str:
    x, y = _place(content, row)
    memory = row.evaluation.slots_total_over_experts
    return f"{label(row.method)}<br>{x:.3f} copies per token<br>busiest device {y:.2f}x the mean<br>expert memory {memory:.2f}x"


def _memory(row: ComparisonRow) -> str:
    return f"{row.evaluation.slots_total_over_experts:.2f}x"
