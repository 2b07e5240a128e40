"""Figure of the experts of one layer that are chosen together, ordered by device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from grace_moe.report.content import ReportContent
from grace_moe.report.plot_style import LINE, bin_width, binned, heat_map, styled_figure

if TYPE_CHECKING:
    import plotly.graph_objects as go

RULED_DEVICES = 16
"""Devices that have lines between them; more lines would hide the matrix."""
NAMED_DEVICES = 8
"""Devices that have room for their names beside the matrix; with more, their nodes' names stand there."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def affinity_figure(content: ReportContent, after: bool, most: float) -> go.Figure:
    """Tokens that chose both of two experts, before or after; `most` has the strongest colour."""
    affinity, node_of_device = content.affinity, content.topology.node_of_device
    order, sizes = affinity.order[after], affinity.sizes[after]
    width = bin_width(len(order))
    counts = affinity.counts[np.ix_(order, order)]
    counts = binned(binned(counts, width).T, width)
    names = [f"expert {expert}" + ("..." if width > 1 else "") for expert in order[::width].tolist()]
    shown = counts.astype(np.int32) if width == 1 else counts.round(2).astype(np.float32)
    hover = "%{x} and %{y}<br>%{z:,} tokens chose both<extra></extra>"
    figure = styled_figure([heat_map(shown, x=names, y=names, low=0, high=most, hover=hover)])
    ends, edge = np.cumsum(sizes) / width, len(counts) - 0.5
    figure.update_layout(shapes=_borders(ends, node_of_device, edge))
    ticks = _ticks(ends, node_of_device)
    figure.update_xaxes(**ticks, type="category", range=[-0.5, edge], constrain="domain")
    figure.update_yaxes(**ticks, type="category", range=[edge, -0.5], constrain="domain", scaleanchor="x", tickangle=-90)
    return figure


def _borders(ends: Floats, node_of_device: Ints, edge: float) -> list[dict[str, Any]]:
    """Lines behind the experts of each device, thick ones behind each node; `ends` `[devices]` is where its experts end."""
    last_of_node = np.append(np.diff(node_of_device) > 0, True)
    lines = [(end, 2.2) for end in ends[last_of_node][:-1]]
    if len(ends) <= RULED_DEVICES:
        lines += [(end, 0.7) for end in ends[~last_of_node]]
    return [line for end, thick in lines for line in _across_and_down(float(end) - 0.5, edge, thick)]


def _across_and_down(place: float, edge: float, width: float) -> list[dict[str, Any]]:
    """Two lines through a matrix that ends at `edge`."""
    style = {"type": "line", "line": {"color": LINE, "width": width}}
    return [{"x0": place, "x1": place, "y0": -0.5, "y1": edge} | style, {"x0": -0.5, "x1": edge, "y0": place, "y1": place} | style]


def _ticks(ends: Floats, node_of_device: Ints) -> dict[str, Any]:
    """Names of devices, or of nodes, at the middle of their experts."""
    starts = np.concatenate([[0], ends[:-1]])
    if len(ends) <= NAMED_DEVICES:
        return {"tickvals": (starts + ends) / 2 - 0.5, "ticktext": [f"dev {d}" for d in range(len(ends))]}
    members = [node_of_device == n for n in range(int(node_of_device[-1]) + 1)]
    middles = np.array([(starts[m].min() + ends[m].max()) / 2 - 0.5 for m in members])
    return {"tickvals": middles, "ticktext": [f"node {n}" for n in range(len(members))]}
