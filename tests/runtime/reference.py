"""The executable specification of dispatch and combine: one process, no communication, obvious loops, and in which order sums are made.

On one device: for each token, k ascending. Placed: a device sums its experts, k ascending; a way (a device with flat dispatch, a node with
hierarchical) sums its devices, ascending; the source sums the ways. Every sum is accumulated in float32 at least, and rounded
to the hidden states' type once it is made: it goes on the wire.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

ExpertsFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(hidden [P, H], ids [P, 1], weights [P, 1]) -> weighted outputs [P, H]."""


def reference_moe(experts: ExpertsFunction, hidden_TH: torch.Tensor, topk_ids_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
    """`[T, H]` weighted sum of each token's experts, token by token."""
    everywhere = torch.zeros_like(topk_ids_TK)
    return reference_placed(experts, hidden_TH, topk_ids_TK, weights_TK, everywhere, ways=[[0]])


def reference_placed(
    experts: ExpertsFunction,
    hidden_TH: torch.Tensor,
    topk_ids_TK: torch.Tensor,
    weights_TK: torch.Tensor,
    devices_TK: torch.Tensor,
    *,
    ways: Sequence[Sequence[int]],
) -> torch.Tensor:
    """`[T, H]` what dispatch and combine give the tokens of one source, to the last bit where experts round alike in any batch.

    Args:
        devices_TK: int64 device that computes each pair; ignored where no expert is chosen (id -1).
        ways: devices whose sums come back as one, in the order in which the source adds them: with flat dispatch each device
            by itself, ascending; with hierarchical the source's own node, then the others, ascending.
    """
    output = torch.empty_like(hidden_TH)
    for t in range(len(hidden_TH)):
        of_ways = []
        for devices in ways:
            of_devices = []
            for device in devices:
                here = [k for k in range(topk_ids_TK.shape[1]) if topk_ids_TK[t, k] >= 0 and devices_TK[t, k] == device]
                one = [experts(hidden_TH[t : t + 1], topk_ids_TK[t : t + 1, k : k + 1], weights_TK[t : t + 1, k : k + 1])[0] for k in here]
                of_devices.append(_sum(one, hidden_TH[t]))
            of_ways.append(_sum(of_devices, hidden_TH[t]))
        output[t] = _sum(of_ways, hidden_TH[t])
    return output


def _sum(rows: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    total = torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
    for row in rows:
        total += row
    return total.to(like.dtype)
