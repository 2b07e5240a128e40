"""What the report's figures share: colours, an empty figure, heat maps, bins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import plotly.graph_objects as go

OURS, THEIRS, MUTED = "#d9541e", "#7a828e", "#9aa1ab"
"""Colours that tell apart for any kind of colour vision, on light and dark."""
INK = "#444444"
"""Of text that takes the page's own colour, light or dark (page.css)."""
SCALE = [[0, "rgba(31,111,181,0)"], [1, "rgba(31,111,181,1)"]]
"""Of every heat map, until the page puts its own in (page.js)."""
LINE = "rgba(128,136,148,0.55)"
MAX_BINS = 512
"""Most rows or columns of a heat map; more are binned, so that the page stays below 8 MB."""

Floats = npt.NDArray[np.float64]


def styled_figure(traces: list[Any], height: int | None = None) -> go.Figure:
    """A figure of these traces with the page's fonts and axes; `height` in pixels."""
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


def heat_map(z: npt.NDArray[Any], *, x: Any, y: Any, low: float, high: float, hover: str) -> Any:
    """Plotly's trace of a matrix, coloured from `low` to `high`."""
    import plotly.graph_objects as go

    return go.Heatmap(z=z, x=x, y=y, zmin=low, zmax=high, colorscale=SCALE, showscale=False, hovertemplate=hover)


def bin_width(count: int) -> int:
    """Rows (or columns) that share one of a heat map's, so that it has at most `MAX_BINS`."""
    return -(-count // MAX_BINS)


def binned(values: npt.NDArray[Any], width: int) -> npt.NDArray[Any]:
    """Means of so many rows each; the last bin may have fewer."""
    if width == 1:
        return values
    starts = np.arange(0, len(values), width)
    sums: Floats = np.add.reduceat(values.astype(np.float64), starts, axis=0)
    return sums / np.diff(np.append(starts, len(values)))[:, None]
