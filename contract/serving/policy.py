"""The map that vLLM's balancing policy makes, once its plug-ins are in; twice, as it may load them more than once in a process."""


def run(job, rank):
    """`table`: `[layers, slots]` for four layers of 64 experts, 80 slots on four ranks of two nodes, without loads; `planned`: whether the
    policy is another than vLLM's own."""
    import torch
    from vllm.config.parallel import EPLBConfig
    from vllm.distributed.eplb.policy import EPLB_POLICIES, DefaultEplbPolicy
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    load_general_plugins()
    policy = EPLB_POLICIES[EPLBConfig().policy]
    old = torch.arange(80).repeat(4, 1) % 64
    table = policy.rebalance_experts(torch.zeros(4, 64, dtype=torch.int64), 80, 1, 2, 4, old)
    assert table.shape == (4, 80)
    assert table.dtype == torch.int64
    return {"table": table.tolist(), "planned": policy is not DefaultEplbPolicy}
