"""Figures of load by layer: of experts, and of devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from grace_moe.report.content import ReportContent
from grace_moe.report.plot_style import bin_width, binned, heat_map, styled_figure

if TYPE_CHECKING:
    import plotly.graph_objects as go

Floats = npt.NDArray[np.float64]


def expert_load_range(content: ReportContent) -> float:
    """What the strongest cell of the expert loads stands for; hotter ones look alike."""
    return max(1.0, float(np.percentile(content.expert_load, 99.5)))


def expert_load_figure(content: ReportContent) -> go.Figure:
    """Load of each expert over its layer's mean."""
    width = bin_width(content.expert_load.shape[1])
    load = binned(content.expert_load.T, width).T
    return _by_layer(
        load,
        x=np.arange(load.shape[1]) * width,
        layers=content.trace.layer_ids,
        low=0.0,
        high=expert_load_range(content),
        hover="layer %{y}, expert" + ("s from" if width > 1 else "") + " %{x}<br>%{z:.2f}x the mean<extra></extra>",
        x_title="expert" if width == 1 else f"expert (each column is the mean of {width})",
    )


def device_load_figure(content: ReportContent, load: Floats, most: float) -> go.Figure:
    """Load of each device over its layer's mean, coloured from 1 to `most`."""
    load = binned(load.T, bin_width(load.shape[1])).T
    figure = _by_layer(
        load,
        x=np.arange(load.shape[1]),
        layers=content.trace.layer_ids,
        low=1.0,
        high=most,
        hover="layer %{y}, device %{x}<br>%{z:.2f}x the mean<extra></extra>",
        x_title="device",
    )
    figure.update_xaxes(dtick=max(1, load.shape[1] // 8))
    return figure


def _by_layer(
    values: Floats, *, x: npt.NDArray[Any], layers: tuple[int, ...], low: float, high: float, hover: str, x_title: str
) -> go.Figure:
    """A row a layer, the first on top."""
    names = [str(layer) for layer in layers]
    heat = heat_map(values.round(3).astype(np.float32), x=x, y=names, low=low, high=max(high, low + 1e-3), hover=hover)
    figure = styled_figure([heat], height=int(np.clip(80 + 15 * len(names), 200, 640)))
    figure.update_xaxes(title_text=x_title, ticks="outside")
    figure.update_yaxes(title_text="layer", type="category", autorange="reversed", nticks=12)
    return figure
