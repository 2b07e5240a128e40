"""One rank of vLLM decides for all: planning on each would take the cores of those that serve."""

from __future__ import annotations

from grace_moe.engines.equaliser import Replanned
from grace_moe.engines.live.deciding import DecidingProcess
from grace_moe.engines.live.window_adapter import SeenChoices
from grace_moe.placement import Placement


class DecidingRank:
    """`WindowPolicy` in a process beside rank 0 of the balancer's group, in which vLLM moves experts; the others are told."""

    def __init__(self) -> None:
        self._process = DecidingProcess()

    def next(self, serving: Placement, seen: SeenChoices, most_moves: int) -> Replanned:
        """See `WindowPolicy`. Collective: vLLM's policy is asked on all ranks, in the thread that moves experts next."""
        from vllm.distributed.parallel_state import get_eplb_group

        group = get_eplb_group()
        ours = self._process.next(serving, seen, most_moves) if group.rank_in_group == 0 else None
        found: Replanned = group.broadcast_object(ours, src=0)
        return found
