"""Transformers' own expert parallelism, the baseline: unchanged but for counting what it sends."""

from __future__ import annotations

from typing import Any

import torch
from transformers.distributed.expert_parallel import AllToAllEP

from grace_moe.cost.wire import COUNT_BYTES
from grace_moe.runtime.model.load_under_way import load_under_way


class MeteredAllToAll(AllToAllEP):
    """Its all-to-all, which counts what it hands to its collectives by the meter of the load under way."""

    def __init__(self, experts: torch.nn.Module, ep_mesh: Any, tp_mesh: Any) -> None:
        super().__init__(experts, ep_mesh, tp_mesh)
        self.meter = load_under_way().meter

    def _dispatch_tokens(self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> Any:
        tokens, expert_ids, weights, state = super()._dispatch_tokens(hidden_states, top_k_index, top_k_weights)
        ranks = range(self.ep_mesh.size())
        counts_bytes = self.num_local_experts * COUNT_BYTES
        self.meter.count(ranks, [counts_bytes for _ in ranks])
        row_bytes = hidden_states.shape[-1] * hidden_states.element_size()
        self.meter.count(ranks, [n * row_bytes for n in state.send_sizes])
        return tokens, expert_ids, weights, state

    def _combine_tokens(self, expert_output: torch.Tensor, state: Any) -> Any:
        row_bytes = expert_output.shape[-1] * expert_output.element_size()
        self.meter.count(range(self.ep_mesh.size()), [n * row_bytes for n in state.recv_sizes])
        return super()._combine_tokens(expert_output, state)
