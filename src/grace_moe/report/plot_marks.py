"""Marks of the cluster's figure: lines that say what they carry, and notes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def link(start: Floats, end: Floats, width: float, colour: str, text: str) -> list[Any]:
    """A line `width` pixels wide, and a point at its middle that says what it carries."""
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


def line_note(text: str, start: Floats, end: Floats, width: float, *, size: int = 14) -> dict[str, Any]:
    """Above a line across, right of one down; beside a slanting one, before it crosses others, on the side of its start."""
    across, down = np.abs(end - start)
    if down < 1e-6:
        return note(text, *(start + end) / 2, yshift=width / 2 + 10, size=size)
    if across < 1e-6:
        return note(text, *(start + end) / 2, xshift=width / 2 + 20, size=size)
    return note(text, *(start + 0.25 * (end - start)), xshift=(1 if start[0] > end[0] else -1) * (width / 2 + 20), size=size)


def note(
    text: str, x: float, y: float, *, xshift: float = 0.0, yshift: float = 0.0, size: int = 12, colour: str | None = None
) -> dict[str, Any]:
    """A text at a place of the figure, shifted by pixels."""
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
