"""A simulated day as one HTML page: what each policy cost, how it went over the day, and how far seeds spread."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grace_moe.adapt.simulate import SCENARIOS, Day
from grace_moe.files import write_atomically
from grace_moe.report.day_table import cell_texts, columns_of, measured_on, what_is_counted
from grace_moe.report.page import document, require_report
from grace_moe.report.plot_style import MUTED, OURS, THEIRS, styled_figure

if TYPE_CHECKING:
    import plotly.graph_objects as go

LOOKS = {
    "grace": (OURS, "solid"),
    "static": (THEIRS, "solid"),
    "oracle": (MUTED, "dot"),
    "eplb": (MUTED, "solid"),
    "loads": (MUTED, "dash"),
}
"""Colour and dash of each policy's line."""
POINTS = 100
"""Most points of a line: each is the mean of as many steps."""


def write_day_report(day: Day, path: str | Path, command: str = "") -> None:
    """Write the page whole, or nothing. The same day gives the same bytes.

    Args:
        command: that makes the page again.

    Raises:
        MissingExtraError: plotly is not installed.
        GraceError: the file can't be written.
    """
    write_atomically(Path(path), day_page(day, command).encode("utf-8", errors="replace"))


def day_page(day: Day, command: str = "") -> str:
    """The page's HTML."""
    require_report()
    body = "\n".join([_head(day), _table(day), _sections(day), _made(day, command)])
    return document(
        f"GRACE-MoE: a simulated day, {day.scenario}", body, {"spread": _spread(day), "steps": _steps(day), "moves": _moves(day)}
    )


def _head(day: Day) -> str:
    costs = {row["policy"]: row["total_cost"] for row in day.rows()}
    sentence = f"{escape(day.scenario)}: what {len(costs)} policies of placement cost"
    if {"static", "grace"} <= costs.keys():
        less = 1 - costs["grace"] / costs["static"]
        change = "as much as" if abs(less) < 0.0005 else f"{abs(less):.1%} {'less' if less > 0 else 'more'} than"
        sentence = f"{escape(day.scenario)}: following traffic cost <b>{change}</b> a plan that stays"
    scenario = (SCENARIOS[day.scenario].__doc__ or "").strip()
    return f"""<p class="about">{escape(scenario)}</p>
<h1>{sentence}</h1>
<p class="how">{escape(what_is_counted(day).capitalize())}. {escape(measured_on(day))}</p>"""


def _table(day: Day) -> str:
    heads = "".join(f"<th>{escape(heading).replace(chr(10), '<br>')}</th>" for _, heading, _ in columns_of(day))
    rows = []
    for row in day.rows():
        least, most = row["total_cost_range"]
        cells = "".join(f"<td>{escape(text)}</td>" for text in cell_texts(day, row))
        name = escape(row["policy"])
        rows.append(f'<tr class="{"ours" if name == "grace" else ""}"><td>{name}</td>{cells}<td>{least:.4f} to {most:.4f}</td></tr>')
    return f"""<div class="scroll"><table><thead><tr><th>policy</th>{heads}<th>total cost,<br>seeds</th></tr></thead><tbody>
{chr(10).join(rows)}
</tbody></table></div>"""


def _sections(day: Day) -> str:
    seeds = len(next(iter(day.outcomes.values())))
    parts = (
        ("spread", "What a day cost, seed by seed", f"A point is a day of one of {seeds} seeds; lower is better."),
        ("steps", "How it went", "Cost of the steps, moves left out, mean over seeds; the band is from the least seed to the most."),
        ("moves", "What moved", "Expert copies that had arrived by then, mean over seeds."),
    )
    return "\n".join(
        f'<section><h2>{title}</h2>\n<p class="how">{text}</p>\n<div id="{name}"></div></section>' for name, title, text in parts
    )


def _made(day: Day, command: str) -> str:
    seeds = len(next(iter(day.outcomes.values())))
    again = f"<dt>to make it again</dt><dd><code>{escape(command)}</code></dd>" if command else ""
    return f"<section><h2>How this page was made</h2>\n<dl><dt>seeds</dt><dd>{seeds}</dd>{again}</dl></section>"


def _spread(day: Day) -> go.Figure:
    import plotly.graph_objects as go

    traces = [
        go.Scatter(
            x=[policy] * len(days),
            y=[outcome.total_cost for outcome in days],
            mode="markers",
            marker={"color": LOOKS[policy][0], "size": 11, "opacity": 0.7},
            name=policy,
        )
        for policy, days in day.outcomes.items()
    ]
    figure = styled_figure(traces, height=320)
    figure.update_layout(showlegend=False)
    figure.update_yaxes(title_text="total cost", showgrid=True)
    return figure


def _steps(day: Day) -> go.Figure:
    figure = _lines({policy: np.array([outcome.cost_of_steps for outcome in days]) for policy, days in day.outcomes.items()}, band=True)
    figure.update_yaxes(title_text="cost of a step")
    return figure


def _moves(day: Day) -> go.Figure:
    moved = {policy: np.cumsum([outcome.moved_in_steps for outcome in days], axis=1) for policy, days in day.outcomes.items()}
    figure = _lines(moved, band=False)
    figure.update_yaxes(title_text="expert copies moved")
    return figure


def _lines(values: dict[str, Any], *, band: bool) -> go.Figure:
    """A line a policy over the steps of the day, from `[seeds, steps]` values; with a band of seeds or without."""
    import plotly.graph_objects as go

    traces: list[Any] = []
    for policy, of_seeds in values.items():
        steps = of_seeds.shape[1]
        width = -(-steps // POINTS)
        starts = np.arange(0, steps, width)
        means = np.add.reduceat(of_seeds, starts, axis=1) / np.diff(np.append(starts, steps))
        colour, dash = LOOKS[policy]
        if band and len(of_seeds) > 1:
            around = np.concatenate([means.min(axis=0), means.max(axis=0)[::-1]])
            x = np.concatenate([starts, starts[::-1]])
            traces.append(
                go.Scatter(x=x, y=around, fill="toself", mode="none", fillcolor=colour, opacity=0.18, hoverinfo="skip", showlegend=False)
            )
        traces.append(
            go.Scatter(x=starts, y=means.mean(axis=0), mode="lines", line={"color": colour, "dash": dash, "width": 2}, name=policy)
        )
    figure = styled_figure(traces, height=340)
    figure.update_layout(legend={"orientation": "h", "y": 1.12})
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(showgrid=True)
    return figure
