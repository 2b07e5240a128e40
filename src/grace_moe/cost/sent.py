"""What the all-to-all backends of engines send of a token, by name: what a plan for one of them can spare (docs/compare.md#backends).

Sources: DeepEP's kernels (github.com/deepseek-ai/DeepEP, `internode.cu`: one copy a node over RDMA, forwarded inside; `internode_ll.cu`:
one write for each of a token's experts), NIXL's port of the latter, vLLM's `AgRsAll2AllManager`, and our own dispatches (`transport`).
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from grace_moe.errors import UsageError
from grace_moe.placement import Placement
from grace_moe.topology import Topology

Sends: TypeAlias = Literal["nodes", "devices", "pairs", "everything"]
"""What is sent of a token: one copy to each other node that it needs; to each other device; for each (token, expert) pair; or to all
devices, wherever its experts are."""

SENDS: dict[str, Sends] = {
    "hierarchical": "nodes",
    "deepep_high_throughput": "nodes",
    "flat": "devices",
    "deepep_low_latency": "pairs",
    "nixl_ep": "pairs",
    "vanilla": "pairs",
    "allgather": "everything",
    "allgather_reducescatter": "everything",
}
"""Names that `plan` and `compare` take as `backend`; those of vLLM are vLLM's."""


def sends_of(backend: str) -> Sends:
    """What this backend sends of a token. Raises UsageError where the name is unknown."""
    if backend not in SENDS:
        raise UsageError(f"backend {backend!r} is unknown; use one of {', '.join(SENDS)}")
    return SENDS[backend]


def copies_between_nodes(
    sends: Sends, devices: npt.NDArray[np.int64], sources: npt.NDArray[np.int64], topology: Topology
) -> npt.NDArray[np.int64]:
    """`[T]` copies of each token that go to other nodes.

    Everything is gathered in a ring, in which a token enters each other node once.

    Args:
        devices: `[T, k]` device of each pair, -1 = none.
        sources: `[T]` device on which each token comes in.
    """
    node, own = topology.node_of_device, topology.node_of_device[sources][:, None]
    if sends == "everything":
        return np.full(len(devices), topology.num_nodes - 1)
    away = (devices >= 0) & (node[devices] != own)
    if sends == "pairs":
        return np.asarray(away.sum(axis=1))
    places, width = (node, topology.num_nodes) if sends == "nodes" else (np.arange(len(node)), len(node))
    reached = np.zeros((len(devices), width + 1), bool)
    reached[np.arange(len(devices))[:, None], np.where(away, places[devices], -1)] = True  # -1 is the last column
    return np.asarray(reached[:, :-1].sum(axis=1))


def other_backend(placement: Placement, backend: str) -> str | None:
    """A note where a placement was planned for a backend that sends other things than this one; None where it suits, or names none."""
    planned = placement.provenance.get("backend")
    if not isinstance(planned, str) or planned not in SENDS or SENDS[planned] == sends_of(backend):
        return None
    return f"planned for {planned}, which sends other things than {backend}; plan with --backend {backend} to spare what it sends"
