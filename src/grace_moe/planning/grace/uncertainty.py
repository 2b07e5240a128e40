"""Step 6: the variance of the experts' loads over requests that the plan has not seen.

Requests are the independent units. An expert's share of the load on other requests differs from its share here, with covariance
2 * sum_r z_r z_r^T / total^2. Here z_r is what request r has above its proportion (the variance of a ratio estimate). The factor 2 is there
because the other requests are taken to be as few as these. Experts that follow one topic vary together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.planning.constants import SHRINKAGE


def load_shares(
    ids: npt.NDArray[np.integer[Any]],
    unit: npt.NDArray[np.int64],
    experts: int,
    kind_of_request: npt.NDArray[np.int64] | None = None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """`[E]` each expert's share of the load, and its covariance `[E, E]`.

    Args:
        ids: `[T, k]`, -1 = none.
        unit: `[T]` the request of each token, or what stands for it.
        kind_of_request: of each request in ascending order, where the mix of kinds is steady (a front-end sends as many to each
            node); requests then stray from their kind's proportions only. None = all of one kind.
    """
    _, request = np.unique(unit, return_inverse=True)
    chosen = ids >= 0
    cell = (request[:, None] * experts + np.where(chosen, ids, 0))[chosen]
    num_requests = int(request.max(initial=-1)) + 1
    counts = np.bincount(cell, minlength=num_requests * experts).reshape(-1, experts).astype(float)
    total = counts.sum()
    if total == 0:
        return np.full(experts, 1.0 / experts), np.zeros((experts, experts))
    share = counts.sum(axis=0) / total
    kind = np.zeros(num_requests, np.int64) if kind_of_request is None else kind_of_request
    of_kind = np.zeros((int(kind.max()) + 1, experts))
    np.add.at(of_kind, kind, counts)
    of_kind /= np.maximum(of_kind.sum(axis=1, keepdims=True), 1)
    excess = counts - counts.sum(axis=1, keepdims=True) * of_kind[kind]
    covariance = 2 * excess.T @ excess / total**2
    return share, (1 - SHRINKAGE) * covariance + SHRINKAGE * np.diag(np.diag(covariance))
