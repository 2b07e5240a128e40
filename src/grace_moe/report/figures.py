"""The report's figures: pure functions from its content to plotly's. No text of a file enters a figure, only numbers and our own words."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from grace_moe.evaluation import ComparisonRow
from grace_moe.report.cluster import Drawing, drawing
from grace_moe.report.content import AFTER, BEFORE, ReportContent, device_load, device_traffic, node_traffic
from grace_moe.report.words import label

if TYPE_CHECKING:
    import plotly.graph_objects as go

OURS, THEIRS, MUTED = "#d9541e", "#7a828e", "#9aa1ab"
"""Colours that tell apart for any kind of colour vision, on light and dark."""
INK = "#444444"
"""Of text that takes the page's own colour, light or dark (page.css)."""
SCALE = [[0, "rgba(31,111,181,0)"], [1, "rgba(31,111,181,1)"]]
"""Of every heat map, until the page puts its own in (page.js)."""
LINE = "rgba(128,136,148,0.55)"
DRAWN_DEVICES = 16
"""More are shown as a matrix instead of a drawing."""
NAMED_DEVICES = 8
"""More have no room for their names beside a matrix; their nodes' names stand there."""
MAX_BINS = 512
"""Most rows or columns of a heat map; more are binned, so that the page stays below 8 MB."""
MAX_LINE = 22.0
"""Pixels of the widest line between two nodes; half of it where more lines have to find room."""

Floats = npt.NDArray[np.float64]


def figures(content: ReportContent) -> dict[str, go.Figure]:
    """Every figure by the id of its place on the page."""
    most_affinity = float(np.percentile(content.affinity.counts, 99)) or 1.0
    loads = [device_load(row.evaluation) for row in (content.before, content.after)]
    most_load = float(max(load.max() for load in loads))
    found = {"expert-load": _expert_load(content), "frontier": _frontier(content)}
    for side, load in zip(("before", "after"), loads, strict=True):
        found[f"device-load-{side}"] = _device_load(content, load, most_load)
        found[f"affinity-{side}"] = _affinity(content, side == "after", most_affinity)
    return found | _clusters(content)


def expert_load_range(content: ReportContent) -> float:
    """What the strongest cell of the expert loads stands for; hotter ones look alike."""
    return max(1.0, float(np.percentile(content.expert_load, 99.5)))


def traffic_range(content: ReportContent) -> float:
    """Copies that the strongest cell of the traffic matrices stands for: the most between two devices, before or after."""
    rows = (content.before, content.after)
    return float(max(device_traffic(row.evaluation, content.topology).max() for row in rows)) or 1.0


def _expert_load(content: ReportContent) -> go.Figure:
    width = -(-content.expert_load.shape[1] // MAX_BINS)
    load = _binned(content.expert_load.T, width).T
    first = np.arange(load.shape[1]) * width
    return _heat_map(
        load,
        x=first,
        layers=content.trace.layer_ids,
        top=expert_load_range(content),
        hover="layer %{y}, expert" + ("s from" if width > 1 else "") + " %{x}<br>%{z:.2f}x the mean<extra></extra>",
        x_title="expert" if width == 1 else f"expert (each column is the mean of {width})",
    )


def _device_load(content: ReportContent, load: Floats, top: float) -> go.Figure:
    load = _binned(load.T, -(-load.shape[1] // MAX_BINS)).T
    figure = _heat_map(
        load,
        x=np.arange(load.shape[1]),
        layers=content.trace.layer_ids,
        top=top,
        hover="layer %{y}, device %{x}<br>%{z:.2f}x the mean<extra></extra>",
        x_title="device",
        bottom=1.0,
    )
    figure.update_xaxes(dtick=max(1, load.shape[1] // 8))
    return figure


def _heat_map(
    values: Floats, *, x: npt.NDArray[Any], layers: tuple[int, ...], top: float, hover: str, x_title: str, bottom: float = 0.0
) -> go.Figure:
    import plotly.graph_objects as go

    names = [str(layer) for layer in layers]
    shown = values.round(3).astype(np.float32)
    trace = go.Heatmap(
        z=shown, x=x, y=names, zmin=bottom, zmax=max(top, bottom + 1e-3), colorscale=SCALE, showscale=False, hovertemplate=hover
    )
    figure = _figure([trace], height=int(np.clip(80 + 15 * len(names), 200, 640)))
    figure.update_xaxes(title_text=x_title, ticks="outside")
    figure.update_yaxes(title_text="layer", type="category", autorange="reversed", nticks=12)
    return figure


def _affinity(content: ReportContent, after: bool, top: float) -> go.Figure:
    import plotly.graph_objects as go

    affinity, node_of_device = content.affinity, content.topology.node_of_device
    order, sizes = affinity.order[after], affinity.sizes[after]
    width = -(-len(order) // MAX_BINS)
    counts = affinity.counts[np.ix_(order, order)]
    counts = _binned(_binned(counts, width).T, width)
    names = [f"expert {expert}" + ("..." if width > 1 else "") for expert in order[::width].tolist()]
    heat = go.Heatmap(
        z=counts.astype(np.int32) if width == 1 else counts.round(2).astype(np.float32),
        x=names,
        y=names,
        zmin=0,
        zmax=top,
        colorscale=SCALE,
        showscale=False,
        hovertemplate="%{x} and %{y}<br>%{z:,} tokens chose both<extra></extra>",
    )
    figure = _figure([heat])
    ends = np.cumsum(sizes) / width
    last_of_node = np.append(np.diff(node_of_device) > 0, True)
    lines = [(end, 2.2) for end in ends[last_of_node][:-1]]
    if len(sizes) <= DRAWN_DEVICES:  # more lines would hide the matrix
        lines += [(end, 0.7) for end in ends[~last_of_node]]
    edge = len(counts) - 0.5
    figure.update_layout(shapes=[line for end, thick in lines for line in _across_and_down(float(end) - 0.5, edge, thick)])
    starts = np.concatenate([[0], ends[:-1]])
    if len(sizes) <= NAMED_DEVICES:
        ticks = {"tickvals": (starts + ends) / 2 - 0.5, "ticktext": [f"dev {d}" for d in range(len(sizes))]}
    else:
        members = [node_of_device == n for n in range(content.topology.num_nodes)]
        middles = np.array([(starts[m].min() + ends[m].max()) / 2 - 0.5 for m in members])
        ticks = {"tickvals": middles, "ticktext": [f"node {n}" for n in range(len(members))]}
    figure.update_xaxes(**ticks, type="category", range=[-0.5, edge], constrain="domain")
    figure.update_yaxes(**ticks, type="category", range=[edge, -0.5], constrain="domain", scaleanchor="x", tickangle=-90)
    return figure


def _across_and_down(place: float, edge: float, width: float) -> list[dict[str, Any]]:
    """Two lines through a matrix that ends at `edge`."""
    style = {"type": "line", "line": {"color": LINE, "width": width}}
    return [{"x0": place, "x1": place, "y0": -0.5, "y1": edge} | style, {"x0": -0.5, "x1": edge, "y0": place, "y1": place} | style]


def _clusters(content: ReportContent) -> dict[str, go.Figure]:
    topology = content.topology
    rows = {"before": content.before, "after": content.after}
    copies = {side: device_traffic(row.evaluation, topology) for side, row in rows.items()}
    if topology.num_devices > DRAWN_DEVICES:
        return {f"cluster-{side}": _traffic_matrix(c, traffic_range(content)) for side, c in copies.items()}
    plan = drawing(topology)
    nodes = {side: node_traffic(c, topology) for side, c in copies.items()}
    drawn = [_both_ways(n - np.diag(np.diag(n))) for n in nodes.values()] + [_both_ways(c * _same_node(topology)) for c in copies.values()]
    widest = max(lines.max(initial=0) for lines in drawn)
    per_pixel = float(widest) / (MAX_LINE if topology.num_nodes <= 2 else MAX_LINE / 2) or 1.0
    colours = {"before": THEIRS, "after": OURS}
    return {f"cluster-{side}": _cluster(content, rows[side], plan, copies[side], nodes[side], per_pixel, colours[side]) for side in copies}


def _cluster(
    content: ReportContent, row: ComparisonRow, plan: Drawing, copies: Floats, between: Floats, per_pixel: float, colour: str
) -> go.Figure:
    import plotly.graph_objects as go

    topology = content.topology
    nodes, inside = _both_ways(between), _both_ways(copies * _same_node(topology))
    traces: list[Any] = []
    notes: list[dict[str, Any]] = []
    for a, b in zip(*np.nonzero(np.triu(np.ones_like(nodes), 1)), strict=True):
        start, end = plan.between(int(a), int(b))
        text = f"node {a} and node {b}: {nodes[a, b]:.3f} copies per token"
        traces += _link(start, end, nodes[a, b] / per_pixel, colour, text)
        if topology.num_nodes <= 4:
            notes.append(
                _line_note(f"{nodes[a, b]:.2f}{' copies' if topology.num_nodes == 2 else ''}", start, end, nodes[a, b] / per_pixel)
            )
    for a, b in zip(*np.nonzero(np.triu(inside, 1)), strict=True):
        text = f"device {a} and device {b}: {inside[a, b]:.3f} copies per token"
        traces += _link(plan.devices[a], plan.devices[b], inside[a, b] / per_pixel, MUTED, text)
        if topology.num_devices // topology.num_nodes == 2:
            notes.append(_line_note(f"{inside[a, b]:.2f}", plan.devices[a], plan.devices[b], inside[a, b] / per_pixel, size=12))
    load = device_load(row.evaluation).mean(axis=0)
    traces.append(
        go.Scatter(
            x=plan.devices[:, 0],
            y=plan.devices[:, 1],
            mode="markers",
            marker={"symbol": "square", "size": 28 if topology.num_devices <= 8 else 22, "color": colour, "line": {"width": 0}},
            hovertext=[f"device {d}: {x:.3f}x the mean load, mean over the layers" for d, x in enumerate(load)],
            hoverinfo="text",
            showlegend=False,
        )
    )
    for device, (x, y) in enumerate(plan.devices.tolist()):
        notes.append(_note(str(device), x, y, colour="#ffffff"))
    for n, (x, y) in enumerate(plan.nodes.tolist()):
        notes.append(_note(f"node {n}", x - plan.half, y + plan.half, yshift=9) | {"xanchor": "left"})
    boxes = [
        {"type": "rect", "x0": x - plan.half, "x1": x + plan.half, "y0": y - plan.half, "y1": y + plan.half, "layer": "below"}
        | {"line": {"color": LINE, "width": 1.2}, "fillcolor": "rgba(128,136,148,0.08)"}
        for x, y in plan.nodes.tolist()
    ]
    figure = _figure(traces)
    figure.update_layout(shapes=boxes, annotations=notes, margin={"l": 4, "r": 4, "t": 4, "b": 4})
    low, high = plan.nodes.min(axis=0) - plan.half - 0.08, plan.nodes.max(axis=0) + plan.half + [0.08, 0.4]
    figure.update_xaxes(visible=False, range=[low[0], high[0]], constrain="domain")
    figure.update_yaxes(visible=False, range=[low[1], high[1]], constrain="domain", scaleanchor="x")
    return figure


def _link(start: Floats, end: Floats, width: float, colour: str, text: str) -> list[Any]:
    """A line, and a point at its middle that says what it carries."""
    import plotly.graph_objects as go

    x, y = zip(start.tolist(), end.tolist(), strict=True)
    line = go.Scatter(
        x=x, y=y, mode="lines", line={"color": colour, "width": round(width, 2)}, opacity=0.75, hoverinfo="skip", showlegend=False
    )
    middle = ((start + end) / 2).tolist()
    point = go.Scatter(
        x=[middle[0]],
        y=[middle[1]],
        mode="markers",
        marker={"size": 18, "opacity": 0},
        hovertext=[text],
        hoverinfo="text",
        showlegend=False,
    )
    return [line, point]


def _line_note(text: str, start: Floats, end: Floats, width: float, *, size: int = 14) -> dict[str, Any]:
    """Above a line across, right of one down; beside a slanting one, before it crosses others, on the side of its start."""
    across, down = np.abs(end - start)
    if down < 1e-6:
        return _note(text, *(start + end) / 2, yshift=width / 2 + 10, size=size)
    if across < 1e-6:
        return _note(text, *(start + end) / 2, xshift=width / 2 + 20, size=size)
    return _note(text, *(start + 0.25 * (end - start)), xshift=(1 if start[0] > end[0] else -1) * (width / 2 + 20), size=size)


def _note(
    text: str, x: float, y: float, *, xshift: float = 0.0, yshift: float = 0.0, size: int = 12, colour: str | None = None
) -> dict[str, Any]:
    font = {"size": size} if colour is None else {"size": size, "color": colour}
    return {
        "text": text,
        "x": float(x),
        "y": float(y),
        "xshift": round(float(xshift), 1),
        "yshift": round(float(yshift), 1),
        "showarrow": False,
        "font": font,
    }


def _traffic_matrix(copies: Floats, top: float) -> go.Figure:
    import plotly.graph_objects as go

    width = -(-len(copies) // MAX_BINS)
    copies = _binned(_binned(copies, width).T, width).T
    devices = np.arange(len(copies)) * width
    hover = "device %{y} to device %{x}<br>%{z:.4f} copies per token<extra></extra>"
    heat = go.Heatmap(
        z=copies.round(5).astype(np.float32), x=devices, y=devices, zmin=0, zmax=top, colorscale=SCALE, showscale=False, hovertemplate=hover
    )
    figure = _figure([heat])
    figure.update_xaxes(title_text="to device", constrain="domain")
    figure.update_yaxes(title_text="from device", constrain="domain", scaleanchor="x", autorange="reversed")
    return figure


def _frontier(content: ReportContent) -> go.Figure:
    import plotly.graph_objects as go

    def place(row: ComparisonRow) -> tuple[float, float]:
        return getattr(row.evaluation, content.traffic), row.evaluation.load_max_over_mean

    def hover(row: ComparisonRow) -> str:
        x, y = place(row)
        memory = row.evaluation.slots_total_over_experts
        return f"{label(row.method)}<br>{x:.3f} copies per token<br>busiest device {y:.2f}x the mean<br>expert memory {memory:.2f}x"

    ours = content.after
    others = [content.before, *(row for row in content.comparison.rows if row.method not in (BEFORE, AFTER))]
    budgets = [row for row in content.memory if row is not ours]
    points = [(place(ours), f"GRACE {_memory(ours)}" if budgets else "GRACE"), *((place(row), label(row.method)) for row in others)]
    points += [(place(row), _memory(row)) for row in budgets]
    sides = _label_sides([p for p, _ in points], [text for _, text in points], [place(row) for row in content.memory])
    traces = []
    if budgets:
        x, y = zip(*(place(row) for row in content.memory), strict=True)
        traces.append(go.Scatter(x=x, y=y, mode="lines", line={"color": OURS, "width": 2}, hoverinfo="skip", name="GRACE over memory"))
    groups = (  # later ones lie on top
        (others[1:], {"size": 11, "color": MUTED}, {"size": 12}, 2),
        (others[:1], {"size": 12, "color": THEIRS, "symbol": "square"}, {"size": 12}, 1),
        (budgets, {"size": 9, "color": OURS}, {"size": 11, "color": OURS}, 1 + len(others)),
        ([ours], {"size": 17, "color": OURS}, {"size": 15, "color": OURS}, 0),
    )
    for rows, marker, font, first in groups:
        if rows:
            x, y = zip(*(place(row) for row in rows), strict=True)
            last = first + len(rows)
            traces.append(
                go.Scatter(
                    x=x,
                    y=y,
                    mode="markers+text",
                    marker=marker,
                    text=[text for _, text in points[first:last]],
                    textposition=sides[first:last],
                    textfont=font,
                    hovertext=[hover(row) for row in rows],
                    hoverinfo="text",
                    cliponaxis=False,
                )
            )
    figure = _figure(traces, height=460)
    figure.update_layout(showlegend=False)
    where = "between nodes" if content.traffic == "cross_node_copies" else "between devices"
    low_x, high_x = _padded([p[0] for p, _ in points], 0.16)
    low_y, high_y = _padded([p[1] for p, _ in points], 0.10)
    figure.update_xaxes(title_text=f"← fewer copies of a token {where}", range=[low_x, high_x], showgrid=True)
    figure.update_yaxes(title_text="← more even: busiest device over the mean", range=[low_y, high_y], showgrid=True)
    return figure


def _memory(row: ComparisonRow) -> str:
    return f"{row.evaluation.slots_total_over_experts:.2f}x"


def _label_sides(points: list[tuple[float, float]], texts: list[str], line: list[tuple[float, float]]) -> list[str]:
    """A side for each label where it covers no point, no line and no label before it, on a wide figure and on a phone's."""
    low_x, high_x = _padded([p[0] for p in points], 0.16)
    low_y, high_y = _padded([p[1] for p in points], 0.10)
    steps = np.linspace(0, 1, 40)[:, None]
    along = [tuple(p) for a, b in pairwise(line) for p in (np.array(a) * (1 - steps) + np.array(b) * steps).tolist()]
    figures = []  # of each size: its width and height, the points in pixels, and the boxes that are taken
    for width, height in ((960.0, 400.0), (285.0, 380.0)):
        scale = np.array([width / (high_x - low_x), height / (low_y - high_y)])
        at = ((np.array(points) - [low_x, high_y]) * scale).tolist()
        taken = [(x - 8, y - 8, x + 8, y + 8) for x, y in at]
        taken += [(x - 2, y - 2, x + 2, y + 2) for x, y in ((np.array(along).reshape(-1, 2) - [low_x, high_y]) * scale).tolist()]
        figures.append((width, height, at, taken))
    sides = []
    for index, text in enumerate(texts):
        cost = dict.fromkeys(_SIDES, 0.0)
        for side in cost:
            for width, height, at, taken in figures:
                box = _label_box(at[index][0], at[index][1], 7.2 * len(text), side)
                outside = max(0.0, -box[0]) + max(0.0, box[2] - width) + max(0.0, -box[1]) + max(0.0, box[3] - height)
                cost[side] += sum(_overlap(box, other) for number, other in enumerate(taken) if number != index) + 20 * outside
        best = min(cost, key=lambda side: cost[side])
        for _, _, at, taken in figures:
            taken.append(_label_box(at[index][0], at[index][1], 7.2 * len(text), best))
        sides.append(best)
    return sides


_SIDES = ("middle right", "middle left", "top center", "bottom center", "top right", "bottom right", "top left", "bottom left")


def _label_box(x: float, y: float, width: float, side: str) -> tuple[float, float, float, float]:
    """Left, top, right and bottom in pixels of a label beside a point."""
    up, across = side.split()
    left = {"right": x + (9 if up == "middle" else 4), "left": x - width - (9 if up == "middle" else 4), "center": x - width / 2}[across]
    top = {"middle": y - 8, "top": y - 25, "bottom": y + 9}[up]
    return left, top, left + width, top + 16


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _padded(values: list[float], share: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = share * max(high - low, 0.02 * abs(high), 1e-3)
    return low - room, high + room


def _figure(traces: list[Any], height: int | None = None) -> go.Figure:
    import plotly.graph_objects as go

    axis = {"gridcolor": "rgba(128,136,148,0.22)", "showgrid": False, "zeroline": False, "automargin": True, "fixedrange": True}
    axis |= {"linecolor": LINE, "tickcolor": LINE, "tickfont": {"size": 12}, "title": {"font": {"size": 13}, "standoff": 8}}
    layout = {
        "template": "none",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "dragmode": False,
        "xaxis": axis,
        "yaxis": axis,
        "hoverlabel": {"font": {"size": 13}},
    }
    if height is not None:
        layout["height"] = height
    return go.Figure(data=traces, layout=layout)


def _binned(values: npt.NDArray[Any], width: int) -> npt.NDArray[Any]:
    """Means of so many rows each; the last bin may have fewer."""
    if width == 1:
        return values
    starts = np.arange(0, len(values), width)
    sums: Floats = np.add.reduceat(values.astype(np.float64), starts, axis=0)
    return sums / np.diff(np.append(starts, len(values)))[:, None]


def _both_ways(copies: Floats) -> Floats:
    return copies + copies.T


def _same_node(topology: Any) -> Floats:
    node = topology.node_of_device
    same: Floats = (node[:, None] == node[None, :]).astype(float)
    return same
