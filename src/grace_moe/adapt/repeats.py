"""Requests that say the same: a prompt that comes again is no new evidence of what traffic is like.

A sample has no texts, but a token in the same context chooses the same experts in every layer. Two requests are taken for one where more of
their sampled tokens choose alike than tokens of different texts do. How often those do is bounded by how often tokens of one request do.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, triu
from scipy.sparse.csgraph import connected_components
from scipy.stats import poisson

MISTAKES = 0.01
"""Requests that are falsely taken for a repeat, for each request, at most. Not tuned."""
SHARED = 0.125
"""Least share of its sampled tokens that a repeat has in common with another: more than first words. Not tuned."""
COMMON = 0.125
"""Share of all requests beyond which what they have in common is what traffic is like, such as a system prompt. Not tuned."""

Ints = npt.NDArray[np.int64]


def without_repeats(topk_ids: npt.NDArray[np.integer], requests: npt.NDArray[np.integer]) -> Ints:
    """`[T]` request of each token, where requests that repeat one another have the number of one of them.

    Args:
        topk_ids: `[T, L, k]` choices.
        requests: `[T]` request of each token.
    """
    names, request = np.unique(requests, return_inverse=True)
    if len(names) < 2:
        return requests.astype(np.int64)
    held = _held(topk_ids, request)
    tokens = np.bincount(request)
    alike = (held.data * (held.data - 1)).sum()
    chance = (alike + 1) / ((tokens * (tokens - 1)).sum() + 1)
    held.data[:] = 1
    holders = np.bincount(held.indices, minlength=held.shape[1])
    told = held[:, (holders > 1) & (holders <= max(2, COMMON * len(names)))]
    shared = triu(told @ told.T, k=1).tocoo()
    sizes = tokens[shared.row], tokens[shared.col]
    same = (shared.data >= SHARED * np.minimum(*sizes)) & (
        poisson.sf(shared.data - 1, chance * sizes[0] * sizes[1]) < MISTAKES / len(names)
    )
    links = csr_matrix((np.ones(int(same.sum())), (shared.row[same], shared.col[same])), shape=(len(names), len(names)))
    _, group = connected_components(links, directed=False)
    _, first = np.unique(group, return_index=True)
    renamed: Ints = names[first[group]][request].astype(np.int64)
    return renamed


def _held(topk_ids: npt.NDArray[np.integer], request: Ints) -> csr_matrix:
    """`[requests, kinds]` tokens of each request; tokens are of a kind that choose alike in every layer."""
    flat = topk_ids.reshape(len(topk_ids), -1).astype(np.int64)
    factors = np.random.default_rng(0).integers(1 << 62, size=flat.shape[1]) * 2 + 1
    _, kind = np.unique(flat @ factors, return_inverse=True)  # sums wrap around: a hash of 64 bits
    return csr_matrix((np.ones(len(kind), np.int64), (request, kind)))
