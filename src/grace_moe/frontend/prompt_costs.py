"""What a prompt is expected to cost from each node, told from its tokens before any model has seen them.

A router's choices are not known when a request comes in. What is known is what the tokens are, and the same token mostly chooses
alike. So a recorded trace says what each token of the vocabulary cost from each node on average; a prompt costs the mean of its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from grace_moe.choice import cost_tables, token_costs
from grace_moe.errors import TraceError
from grace_moe.placement import Placement, check_same_model
from grace_moe.trace import RoutingTrace

DOUBT = 4.0
"""Occurrences without any cost that are added to a token's own: a token seen once says little. Not tuned."""


class PromptCosts:
    """Costs of the tokens of a vocabulary under a placement.

    Raises:
        MismatchError: the placement carries no costs of sources, or is of another model than the trace.
        TraceError: the trace doesn't say what its tokens are.
    """

    def __init__(self, placement: Placement, trace: RoutingTrace) -> None:
        tables = cost_tables(placement)
        check_same_model(placement, trace)
        if trace.token_ids is None:
            raise TraceError(trace.source, "token_ids", "none, so that prompts tell nothing", "record it with --token-ids")
        self.known, occurrence = np.unique(trace.token_ids, return_inverse=True)
        """`[V]` tokens of the trace, ascending."""
        total = np.zeros((len(self.known), placement.topology.num_nodes))
        np.add.at(total, occurrence, token_costs(tables, trace.topk_ids))
        self.costs = total / (np.bincount(occurrence, minlength=len(self.known)) + DOUBT)[:, None]
        """`[V, N]`"""

    def of(self, tokens: Sequence[int]) -> npt.NDArray[np.float64]:
        """`[N]` mean over a prompt's tokens; one that the trace has not costs nothing from anywhere."""
        costs = np.zeros(self.costs.shape[1])
        if len(tokens) == 0 or len(self.known) == 0:
            return costs
        ids = np.asarray(tokens, dtype=np.int64)
        place = np.minimum(np.searchsorted(self.known, ids), len(self.known) - 1)
        seen = self.known[place] == ids
        return np.asarray(self.costs[place[seen]].sum(axis=0) / len(ids))
