"""Where the labels of points go, so that they cover nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

import numpy as np

Point: TypeAlias = tuple[float, float]
Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""

SIDES = ("middle right", "middle left", "top center", "bottom center", "top right", "bottom right", "top left", "bottom left")
"""Plotly's names of the places beside a point, the best first."""
_SIZES = ((960.0, 400.0), (285.0, 380.0))
"""Width and height in pixels of a wide figure, and of a phone's."""
_CHARACTER = 7.2
"""Pixels of a character."""


@dataclass(frozen=True, kw_only=True)
class _Sheet:
    """A figure of one size: the points in pixels, and the boxes that are taken."""

    width: float
    height: float
    at: list[list[float]]
    taken: list[Box] = field(default_factory=list)

    def cost(self, index: int, box: Box) -> float:
        """How much a label of a point covers, or leaves the figure by."""
        outside = max(0.0, -box[0]) + max(0.0, box[2] - self.width) + max(0.0, -box[1]) + max(0.0, box[3] - self.height)
        return sum(_overlap(box, other) for number, other in enumerate(self.taken) if number != index) + 20 * outside

    def box(self, index: int, text: str, side: str) -> Box:
        """Of a label beside its point."""
        return _label_box(self.at[index][0], self.at[index][1], _CHARACTER * len(text), side)


def label_sides(points: list[Point], texts: list[str], line: list[Point], around: Point) -> list[str]:
    """A side for each label where it covers no point, no line and no label before it, on a wide figure and on a phone's.

    Args:
        points, texts: where each label's point is, and what the label says.
        line: points that a line joins.
        around: share of the points' range that the figure leaves free beside them, across and up.
    """
    sheets = [_sheet(points, line, size, around) for size in _SIZES]
    sides = []
    for index, text in enumerate(texts):
        cost = {side: sum(sheet.cost(index, sheet.box(index, text, side)) for sheet in sheets) for side in SIDES}
        best = min(cost, key=lambda side: cost[side])
        for sheet in sheets:
            sheet.taken.append(sheet.box(index, text, best))
        sides.append(best)
    return sides


def padded(values: list[float], share: float) -> Point:
    """The values' range, and this share of it on either side."""
    low, high = min(values), max(values)
    room = share * max(high - low, 0.02 * abs(high), 1e-3)
    return low - room, high + room


def _sheet(points: list[Point], line: list[Point], size: Point, around: Point) -> _Sheet:
    low_x, high_x = padded([p[0] for p in points], around[0])
    low_y, high_y = padded([p[1] for p in points], around[1])
    steps = np.linspace(0, 1, 40)[:, None]
    along = [tuple(p) for a, b in pairwise(line) for p in (np.array(a) * (1 - steps) + np.array(b) * steps).tolist()]
    scale = np.array([size[0] / (high_x - low_x), size[1] / (low_y - high_y)])
    at = ((np.array(points) - [low_x, high_y]) * scale).tolist()
    taken = [(x - 8, y - 8, x + 8, y + 8) for x, y in at]
    taken += [(x - 2, y - 2, x + 2, y + 2) for x, y in ((np.array(along).reshape(-1, 2) - [low_x, high_y]) * scale).tolist()]
    return _Sheet(width=size[0], height=size[1], at=at, taken=taken)


def _label_box(x: float, y: float, width: float, side: str) -> Box:
    up, across = side.split()
    left = {"right": x + (9 if up == "middle" else 4), "left": x - width - (9 if up == "middle" else 4), "center": x - width / 2}[across]
    top = {"middle": y - 8, "top": y - 25, "bottom": y + 9}[up]
    return left, top, left + width, top + 16


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
