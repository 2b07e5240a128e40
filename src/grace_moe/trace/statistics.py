"""Loads and co-activation of experts: what planning reads from a trace."""

import numpy as np
import numpy.typing as npt
from scipy import sparse

from grace_moe.trace.load_profile import LoadProfile
from grace_moe.trace.model import RoutingTrace

_BLOCK = 65_536
"""Tokens that are counted together, so that counting takes little memory beside the trace."""


def expert_loads(recording: RoutingTrace | LoadProfile) -> npt.NDArray[np.int64]:
    """`[layers, experts]` number of tokens that activate each expert (docs/method.md#profile: w)."""
    if isinstance(recording, LoadProfile):
        return recording.loads
    trace = recording
    loads = np.zeros((trace.num_layers, trace.num_experts), dtype=np.int64)
    for start in range(0, trace.num_tokens, _BLOCK):
        for layer in range(trace.num_layers):
            ids = trace.topk_ids[start : start + _BLOCK, layer].ravel()
            loads[layer] += np.bincount(ids[ids >= 0], minlength=trace.num_experts)
    return loads


def activations(topk_ids: npt.NDArray[np.integer], num_experts: int) -> sparse.csr_array:
    """`[tokens, experts]` 0/1 matrix of one layer's choices `[tokens, k]`; -1 counts for nothing."""
    tokens, k = topk_ids.shape
    chosen = topk_ids >= 0
    rows = np.repeat(np.arange(tokens), k).reshape(tokens, k)[chosen]
    values = np.ones(len(rows), dtype=np.int64)
    return sparse.csr_array((values, (rows, topk_ids[chosen])), shape=(tokens, num_experts))


def skew(recording: RoutingTrace | LoadProfile) -> npt.NDArray[np.float64]:
    """`[layers]` largest expert load over the mean load."""
    loads = expert_loads(recording)
    return np.asarray(loads.max(axis=1) / np.maximum(loads.mean(axis=1), 1e-12))
