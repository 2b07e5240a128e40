"""Figure of the copies between many devices: a matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from grace_moe.report.content import ReportContent
from grace_moe.report.plot_style import bin_width, binned, heat_map, styled_figure
from grace_moe.report.traffic import device_traffic

if TYPE_CHECKING:
    import plotly.graph_objects as go

Floats = npt.NDArray[np.float64]


def traffic_range(content: ReportContent) -> float:
    """Copies that the strongest cell of the traffic matrices stands for: the most between two devices, before or after."""
    rows = (content.before, content.after)
    return float(max(device_traffic(row.evaluation, content.topology).max() for row in rows)) or 1.0


def traffic_figures(content: ReportContent) -> tuple[go.Figure, go.Figure]:
    """Before and after, on one scale."""
    most = traffic_range(content)
    before, after = (device_traffic(row.evaluation, content.topology) for row in (content.before, content.after))
    return _figure(before, most), _figure(after, most)


def _figure(copies: Floats, most: float) -> go.Figure:
    """`copies` `[devices, devices]` per token."""
    width = bin_width(len(copies))
    copies = binned(binned(copies, width).T, width).T
    devices = np.arange(len(copies)) * width
    hover = "device %{y} to device %{x}<br>%{z:.4f} copies per token<extra></extra>"
    figure = styled_figure([heat_map(copies.round(5).astype(np.float32), x=devices, y=devices, low=0, high=most, hover=hover)])
    figure.update_xaxes(title_text="to device", constrain="domain")
    figure.update_yaxes(title_text="from device", constrain="domain", scaleanchor="x", autorange="reversed")
    return figure
