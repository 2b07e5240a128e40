"""Loads as rows of one choice each: how a file of a trace holds what an engine counted."""

import numpy as np
import numpy.typing as npt

COUNT_ROWS = 65_536
"""Most rows of a layer: enough to keep loads to a part in thousands, few enough to plan on at once."""
MAX_CELLS = 2**23
"""Rows times layers: of models with over 128 layers rows are fewer."""


def whole_loads(loads: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], bool]:
    """`[layers, experts]` loads as whole numbers that rows can hold; and whether they had to be scaled for it.

    Whole numbers of up to `COUNT_ROWS` a layer stay exactly as they are. Others are scaled to that, each layer by itself, to the nearest,
    and no expert that fired is lost.

    Args:
        loads: `[layers, experts]`, 0 or more, some above 0 in each layer.
    """
    most = min(COUNT_ROWS, max(1, MAX_CELLS // len(loads)))
    totals = loads.sum(axis=1)
    exact = bool((loads == np.floor(loads)).all())
    if exact and totals.max() <= most:
        return loads.astype(np.int64), False
    whole = [row if exact and total <= most else _apportioned(row, most) for row, total in zip(loads, totals, strict=True)]
    return np.stack(whole).astype(np.int64), True


def _apportioned(loads: npt.NDArray[np.float64], rows: int) -> npt.NDArray[np.int64]:
    """So many rows shared by load, to the nearest; every expert with a load gets one, where there are enough."""
    few = np.zeros(len(loads), dtype=bool)
    while True:
        target = np.where(few, 1.0, loads * ((rows - few.sum()) / loads[~few].sum()))
        less = (target < 1) & (loads > 0)
        if not less.any() or np.count_nonzero(loads) > rows:
            break
        few |= less
    share = np.floor(target).astype(np.int64)
    share[np.argsort(share - target, kind="stable")[: rows - int(share.sum())]] += 1
    return share


def rows_of_loads(loads: npt.NDArray[np.int64]) -> npt.NDArray[np.int16]:
    """`[rows, layers, 1]` choices of one expert a row, each expert as often as its load says; -1 in layers with fewer."""
    ids = np.full((int(loads.sum(axis=1).max()), len(loads), 1), -1, dtype=np.int16)
    for layer, row in enumerate(loads):
        ids[: row.sum(), layer, 0] = np.repeat(np.arange(len(row), dtype=np.int16), row)
    return ids
