"""`fused_moe/experts/cpu_moe.py` (line 269) passes slots of all ranks on to a kernel that knows this rank's: with expert parallelism it
reads beyond its weights. Here slots become this rank's own, and a slot elsewhere becomes any of its own with weight 0.
"""

import torch
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts


def install():
    whole = CPUUnquantizedExperts.apply

    def apply(self, output, hidden_states, w1, w2, topk_weights, topk_ids, activation, global_num_experts, expert_map, *more, **named):
        if expert_map is not None:
            local = torch.where(topk_ids < 0, -1, expert_map[topk_ids.long()])
            topk_weights = topk_weights.masked_fill(local < 0, 0.0).contiguous()
            topk_ids = local.clamp(min=0).to(torch.int32).contiguous()
        return whole(
            self, output, hidden_states, w1, w2, topk_weights, topk_ids, activation, global_num_experts, expert_map, *more, **named
        )

    CPUUnquantizedExperts.apply = apply
