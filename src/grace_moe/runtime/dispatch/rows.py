"""Which rows leave for whom, and how rows are summed where they come back."""

from __future__ import annotations

import torch


def must_reach(destinations_TK: torch.Tensor, count: int) -> torch.Tensor:
    """`[count, T]` bool: whether a token must reach a device (or node); destination -1 reaches none."""
    reached = torch.zeros((destinations_TK.shape[0], count + 1), dtype=torch.bool, device=destinations_TK.device)
    reached.scatter_(1, torch.where(destinations_TK >= 0, destinations_TK, count), True)
    return reached[:, :count].T


def positions(matrix: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column, row-major, of each true entry of a matrix known to have `size` of them: the host need not wait to learn it."""
    found = matrix.nonzero_static(size=size)
    return found[:, 0], found[:, 1]


def add_rows(rows_RH: torch.Tensor, index_R: torch.Tensor, size: int, *more: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """`[size, H]` sums of rows by index, accumulated in float32 at least, in ascending row order; then of `more` rows by their index."""
    wide = torch.promote_types(rows_RH.dtype, torch.float32)
    total = torch.zeros((size, rows_RH.shape[1]), dtype=wide, device=rows_RH.device)
    if total.device.type != "cpu":
        # There `index_add_` sums in whatever order its threads come. This sorts first, and adds the sum of an index's rows at once.
        all_rows, all_indices = (torch.cat(parts) for parts in zip((rows_RH, index_R), *more, strict=True))
        return total.index_put_((all_indices,), all_rows.to(wide), accumulate=True).to(rows_RH.dtype)
    for rows, index in ((rows_RH, index_R), *more):
        total = total.index_add_(0, index, rows.to(wide))
    return total.to(rows_RH.dtype)
