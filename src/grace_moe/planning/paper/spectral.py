"""Dense groups of unequal size: spectral clustering of the affinity graph (docs/method.md#group)."""

import warnings

import numpy as np
import numpy.typing as npt
from sklearn.cluster import SpectralClustering
from threadpoolctl import threadpool_limits

from grace_moe.errors import UsageError
from grace_moe.planning.groups.partition import Groups, as_groups


def spectral_groups(affinity: npt.NDArray[np.int64], num_groups: int, *, seed: int = 0) -> Groups:
    """Cluster experts by affinity; no group is empty. The same matrix and seed give the same groups.

    Experts are clustered in an order of their own, so that how they are numbered doesn't matter (but for ties).
    Experts without any affinity are left out of the clustering and go, one by one, to the group that is smallest then.
    Where fewer experts than groups have affinity, each of them starts a group.

    Args:
        affinity: `[experts, experts]` symmetric, zero diagonal.

    Raises:
        UsageError: more groups than experts, or less than one.

    References:
        U. von Luxburg, A tutorial on spectral clustering (2007): the normalised Laplacian, then k-means.
    """
    num_experts = len(affinity)
    if not 1 <= num_groups <= num_experts:
        raise UsageError(f"{num_groups} groups of {num_experts} experts: each group needs one; use at most {num_experts} groups")
    order = _own_order(affinity)
    active = order[affinity.sum(axis=1)[order] > 0]
    enough = len(active) > num_groups
    labels = _cluster(affinity[np.ix_(active, active)], num_groups, seed) if enough else np.arange(len(active))
    members = [active[labels == label].tolist() for label in np.unique(labels)]
    # First the group of the expert that comes first in the order: the clustering's own labels mean nothing.
    members.sort(key=lambda group: int(np.flatnonzero(active == group[0])[0]))
    members += [[] for _ in range(num_groups - len(members))]
    for expert in order[len(active) :]:
        min(members, key=len).append(int(expert))
    _fill_empty(affinity, members)
    return as_groups(members)


def _own_order(affinity: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Experts by total affinity, then by their sorted affinities, largest first."""
    profile = -np.sort(-affinity, axis=1)
    keys = [-profile[:, column] for column in range(profile.shape[1] - 1, -1, -1)]
    return np.lexsort([*keys, -affinity.sum(axis=1)]).astype(np.int64)


def _cluster(affinity: npt.NDArray[np.int64], num_groups: int, seed: int) -> npt.NDArray[np.int64]:
    if num_groups == 1:
        return np.zeros(len(affinity), dtype=np.int64)
    clustering = SpectralClustering(n_clusters=num_groups, affinity="precomputed", random_state=seed)
    # One thread: sums in another order could tip a close decision.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Graphs in several pieces and equal rows are expected here.
        labels = clustering.fit_predict(affinity.astype(np.float64))
    return np.asarray(labels, dtype=np.int64)


def _fill_empty(affinity: npt.NDArray[np.int64], members: list[list[int]]) -> None:
    """Give each empty group the expert of the largest group that has the least affinity to its fellows."""
    for group in members:
        if not group:
            donor = max(members, key=len)
            inside = affinity[np.ix_(donor, donor)].sum(axis=1)
            group.append(donor.pop(int(inside.argmin())))
