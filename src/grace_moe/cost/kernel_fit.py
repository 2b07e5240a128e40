"""Fits `ExpertKernel` to measured times of expert computation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from grace_moe.cost.compute import ExpertKernel
from grace_moe.cost.fitting import Floats, error_of, relative_fit
from grace_moe.cost.sizes import ModelSizes

_ROUNDS = 8
_TILES = (1, 64, 128)


@dataclass(frozen=True, kw_only=True)
class ComputeRows:
    """Measured times of one kernel."""

    seconds: Floats
    """`[rows]`"""
    models: Sequence[ModelSizes]
    """`[rows]` what was computed."""
    loads: Sequence[Floats]
    """`[rows]` of `[draws, experts]` pairs of each expert on the device that was measured."""

    def take(self, rows: npt.NDArray[np.int64]) -> ComputeRows:
        """Some of the rows."""
        return ComputeRows(seconds=self.seconds[rows], models=[self.models[r] for r in rows], loads=[self.loads[r] for r in rows])


class _Cells:
    """All experts of all draws of all rows, one after the other."""

    def __init__(self, rows: ComputeRows) -> None:
        self.count = len(rows.seconds)
        self.pairs = np.concatenate([load.ravel() for load in rows.loads])
        self.row = np.repeat(np.arange(self.count), [load.size for load in rows.loads])
        self.draws = np.array([len(load) for load in rows.loads])
        self.bytes = np.array([model.expert_bytes for model in rows.models])
        self.flops = np.array([model.pair_flops for model in rows.models])

    def columns(self, kernel: ExpertKernel) -> Floats:
        """`[rows, 5]` what to multiply launch, expert, byte, pair and FLOP by: of an expert's read and compute, the slower counts."""
        rows = np.ceil(self.pairs / kernel.tile_rows) * kernel.tile_rows
        read = (kernel.expert_s + self.bytes * kernel.byte_s)[self.row]
        compute = rows * (kernel.pair_s + self.flops * kernel.flop_s)[self.row]
        active, reads = self.pairs > 0, read > compute
        read_experts = self._mean(active & reads)
        computed_rows = self._mean(np.where(active & ~reads, rows, 0.0))
        columns = (np.ones(self.count), read_experts, read_experts * self.bytes, computed_rows, computed_rows * self.flops)
        return np.asarray(np.stack(columns, axis=1))

    def _mean(self, of_cells: npt.NDArray[np.float64] | npt.NDArray[np.bool_]) -> Floats:
        """Sum over a row's experts, mean over its draws."""
        return np.asarray(np.bincount(self.row, of_cells, self.count) / self.draws)


def predict(kernel: ExpertKernel, rows: ComputeRows) -> Floats:
    """`[rows]` seconds."""
    return _predict(kernel, _Cells(rows))


def _predict(kernel: ExpertKernel, cells: _Cells) -> Floats:
    coefficients = np.array([kernel.launch_s, kernel.expert_s, kernel.byte_s, kernel.pair_s, kernel.flop_s])
    return np.asarray(np.maximum(kernel.floor_s, cells.columns(kernel) @ coefficients))


def fit_kernel(rows: ComputeRows, start: ExpertKernel) -> ExpertKernel:
    """The kernel that predicts the rows best, with the tile that does.

    Which of reading and computing an expert is the slower depends on the coefficients: both are found in turns.

    Args:
        start: names what is fitted; its rates are where the search begins.
    """
    cells = _Cells(rows)
    found = [_fit(replace(start, tile_rows=tile), cells, rows.seconds) for tile in _TILES]
    return min(found, key=lambda kernel: _badness(kernel, cells, rows.seconds))


def _badness(kernel: ExpertKernel, cells: _Cells, seconds: Floats) -> float:
    error = error_of(_predict(kernel, cells), seconds)
    return error.median + 0.1 * error.p95


def _fit(start: ExpertKernel, cells: _Cells, seconds: Floats) -> ExpertKernel:
    one_size = len({*zip(cells.bytes, cells.flops, strict=True)}) == 1
    used = np.array([0, 2, 4] if one_size else [0, 1, 2, 3, 4])
    names = ("launch_s", "expert_s", "byte_s", "pair_s", "flop_s")
    kernel = replace(start, floor_s=float(seconds.min()))
    best = kernel
    for _ in range(_ROUNDS):
        columns = cells.columns(kernel)
        time = columns @ np.array([getattr(kernel, name) for name in names])
        above = time >= kernel.floor_s
        if above.sum() <= len(used):
            break
        found = relative_fit(columns[np.ix_(above, used)], seconds[above])
        floor = float(np.median(seconds[~above])) if (~above).sum() > 2 else kernel.floor_s
        times = dict.fromkeys(names, 0.0) | {names[i]: float(value) for i, value in zip(used, found, strict=True)}
        kernel = _with_times(kernel, floor, times)
        best = min(best, kernel, key=lambda k: _badness(k, cells, seconds))
    return best


def _with_times(kernel: ExpertKernel, floor: float, times: Mapping[str, float]) -> ExpertKernel:
    return replace(
        kernel,
        floor_s=floor,
        launch_s=times["launch_s"],
        expert_s=times["expert_s"],
        byte_s=times["byte_s"],
        pair_s=times["pair_s"],
        flop_s=times["flop_s"],
    )
