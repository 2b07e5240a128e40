"""Figure of a small cluster: nodes, devices, and the copies between them as lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from grace_moe.evaluation import Evaluation
from grace_moe.report.cluster_layout import Drawing, drawing
from grace_moe.report.content import ReportContent
from grace_moe.report.plot_marks import Floats, line_note, link, note
from grace_moe.report.plot_style import LINE, MUTED, OURS, THEIRS, styled_figure
from grace_moe.report.traffic import device_load, device_traffic, node_traffic
from grace_moe.topology import Topology

if TYPE_CHECKING:
    import plotly.graph_objects as go

MAX_LINE = 22.0
"""Pixels of the widest line between two nodes; half of it where more lines have to find room."""


@dataclass(frozen=True, kw_only=True)
class _Side:
    """What one drawing shows: copies per token that go both ways, and loads."""

    topology: Topology
    nodes: Floats
    """`[nodes, nodes]`, without those inside nodes."""
    inside: Floats
    """`[devices, devices]` those inside nodes."""
    load: Floats
    """`[devices]` over the mean."""

    @property
    def most(self) -> float:
        """On one line."""
        return max(float(lines.max(initial=0)) for lines in (self.nodes, self.inside))


def cluster_figures(content: ReportContent) -> tuple[go.Figure, go.Figure]:
    """Before and after, on one scale."""
    topology, plan = content.topology, drawing(content.topology)
    sides = [_side(row.evaluation, topology) for row in (content.before, content.after)]
    widest = MAX_LINE if topology.num_nodes <= 2 else MAX_LINE / 2
    per_pixel = max(side.most for side in sides) / widest or 1.0
    return _figure(sides[0], plan, per_pixel, THEIRS), _figure(sides[1], plan, per_pixel, OURS)


def _side(evaluation: Evaluation, topology: Topology) -> _Side:
    copies = device_traffic(evaluation, topology)
    between = node_traffic(copies, topology)
    node = topology.node_of_device
    return _Side(
        topology=topology,
        nodes=_both_ways(between - np.diag(np.diag(between))),
        inside=_both_ways(copies * (node[:, None] == node[None, :])),
        load=device_load(evaluation).mean(axis=0),
    )


def _both_ways(copies: Floats) -> Floats:
    return copies + copies.T


def _figure(side: _Side, plan: Drawing, per_pixel: float, colour: str) -> go.Figure:
    traces, notes = _node_links(side, plan, per_pixel, colour)
    more_traces, more_notes = _device_links(side, plan, per_pixel)
    figure = styled_figure([*traces, *more_traces, _devices(side, plan, colour)])
    names = [note(str(device), x, y, colour="#ffffff") for device, (x, y) in enumerate(plan.devices.tolist())]
    names += [
        note(f"node {n}", x - plan.half, y + plan.half, yshift=9) | {"xanchor": "left"} for n, (x, y) in enumerate(plan.nodes.tolist())
    ]
    boxes = [
        {"type": "rect", "x0": x - plan.half, "x1": x + plan.half, "y0": y - plan.half, "y1": y + plan.half, "layer": "below"}
        | {"line": {"color": LINE, "width": 1.2}, "fillcolor": "rgba(128,136,148,0.08)"}
        for x, y in plan.nodes.tolist()
    ]
    figure.update_layout(shapes=boxes, annotations=[*notes, *more_notes, *names], margin={"l": 4, "r": 4, "t": 4, "b": 4})
    low, high = plan.nodes.min(axis=0) - plan.half - 0.08, plan.nodes.max(axis=0) + plan.half + [0.08, 0.4]
    figure.update_xaxes(visible=False, range=[low[0], high[0]], constrain="domain")
    figure.update_yaxes(visible=False, range=[low[1], high[1]], constrain="domain", scaleanchor="x")
    return figure


def _node_links(side: _Side, plan: Drawing, per_pixel: float, colour: str) -> tuple[list[Any], list[dict[str, Any]]]:
    """Lines between all nodes, and their numbers where there is room."""
    traces, notes = [], []
    num_nodes = side.topology.num_nodes
    for a, b in _pairs(np.ones_like(side.nodes)):
        start, end = plan.between(a, b)
        copies, width = side.nodes[a, b], side.nodes[a, b] / per_pixel
        traces += link(start, end, width, colour, f"node {a} and node {b}: {copies:.3f} copies per token")
        if num_nodes <= 4:
            notes.append(line_note(f"{copies:.2f}{' copies' if num_nodes == 2 else ''}", start, end, width))
    return traces, notes


def _device_links(side: _Side, plan: Drawing, per_pixel: float) -> tuple[list[Any], list[dict[str, Any]]]:
    """Lines between devices of a node that send each other anything, and their numbers where nodes have two devices."""
    traces, notes = [], []
    for a, b in _pairs(side.inside):
        start, end = plan.devices[a], plan.devices[b]
        copies, width = side.inside[a, b], side.inside[a, b] / per_pixel
        traces += link(start, end, width, MUTED, f"device {a} and device {b}: {copies:.3f} copies per token")
        if side.topology.num_devices // side.topology.num_nodes == 2:
            notes.append(line_note(f"{copies:.2f}", start, end, width, size=12))
    return traces, notes


def _pairs(matrix: npt.NDArray[np.float64]) -> list[tuple[int, int]]:
    """Row and column of what is not 0 above the diagonal."""
    return [(int(a), int(b)) for a, b in zip(*np.nonzero(np.triu(matrix, 1)), strict=True)]


def _devices(side: _Side, plan: Drawing, colour: str) -> Any:
    import plotly.graph_objects as go

    return go.Scatter(
        x=plan.devices[:, 0],
        y=plan.devices[:, 1],
        mode="markers",
        marker={"symbol": "square", "size": 28 if side.topology.num_devices <= 8 else 22, "color": colour, "line": {"width": 0}},
        hovertext=[f"device {device}: {load:.3f}x the mean load, mean over the layers" for device, load in enumerate(side.load)],
        hoverinfo="text",
        showlegend=False,
    )
