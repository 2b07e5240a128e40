"""vLLM's mover of weights on one of several gloo processes: it brings experts from one map to another, and says where they went."""

HIDDEN = 3


def run(job, rank):
    """`held`: `[layers, slots of this rank]` expert whose weights are there, after a move from `old` to `new` (`[layers, slots]`)."""
    from types import SimpleNamespace

    import torch

    from cpu_ep import streams

    streams.install()  # there is no accelerator here
    torch.accelerator.synchronize = lambda *_: None
    from vllm.distributed.eplb.eplb_communicator import create_eplb_communicator
    from vllm.distributed.eplb.rebalance_execute import rearrange_expert_weights_inplace

    torch.distributed.init_process_group("gloo")
    old, new = (torch.tensor(job["arguments"][name]) for name in ("old", "new"))
    per_rank = old.shape[1] // job["ranks"]
    mine = slice(rank * per_rank, (rank + 1) * per_rank)
    weights = [
        [torch.stack([torch.full((HIDDEN,), 1000.0 * layer + expert) for expert in row[mine].tolist()])] for layer, row in enumerate(old)
    ]
    buffer = [torch.empty_like(weight) for weight in weights[0]]
    group = torch.distributed.group.WORLD
    names = SimpleNamespace(cpu_group=group, device_group=group, device_communicator=None)
    mover = create_eplb_communicator(names, "torch_gloo", weights, buffer)
    rearrange_expert_weights_inplace(old, new, weights, buffer, group, mover)
    return {"held": [(found[:, 0] - 1000 * layer).long().tolist() for layer, (found,) in enumerate(weights)]}
