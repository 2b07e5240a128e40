"""In what a step and a move are weighed: copies between nodes per token and layer."""

from __future__ import annotations

from dataclasses import dataclass

from grace_moe.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Exchange rates, in copies of one token between nodes.

    Without a cost model of the cluster, a unit of the busiest device's load over the mean counts as much as one copy of every token.

    Raises:
        UsageError: on construction, if one is not above or at 0.
    """

    imbalance: float = 1.0
    """Copies per token and layer that a unit of (busiest device over the mean - 1) is worth."""
    move: float = 1536.0
    """Copies that loading one expert from another node is worth: its bytes over those of a copy, which goes there and comes back. An expert
    of three matrices `[hidden, inner]` in the tokens' own precision has 1.5 * inner of them; 1,536 are OLMoE's."""
    local_move: float = 153.6
    """Copies that loading one expert from its own node is worth."""

    def __post_init__(self) -> None:
        if not (self.imbalance >= 0 and self.move >= 0 and self.local_move >= 0):
            raise UsageError(f"{self}: prices are 0 or more")

    def of_moves(self, moved: int, from_other_nodes: int) -> float:
        """Copies that so many loads of experts are worth, some of them from other nodes."""
        return self.move * from_other_nodes + self.local_move * (moved - from_other_nodes)
