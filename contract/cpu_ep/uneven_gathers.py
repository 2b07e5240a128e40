"""`distributed/device_communicators/cpu_communicator.py` has no `all_gatherv` and `reduce_scatterv`, by which all-gather and
reduce-scatter bring tokens of ranks with different batches together and their sums back.
"""

import torch
import torch.distributed as dist
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator


def all_gatherv(self, input_, dim=0, sizes=None):
    """The rows of all ranks, rank by rank; `sizes` has each one's number. Of a list of tensors, each."""
    if isinstance(input_, list | tuple):
        return [all_gatherv(self, one, dim, sizes) for one in input_]
    assert dim == 0
    sizes = sizes or [len(input_)] * self.world_size
    padded = input_.new_zeros((max(sizes), *input_.shape[1:]))
    padded[: len(input_)] = input_
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=self.device_group)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def reduce_scatterv(self, input_, dim=-1, sizes=None):
    """This rank's rows of the sum over ranks; `sizes` has each one's number. Summed in float32."""
    assert dim == 0
    total = input_.float().contiguous()
    dist.all_reduce(total, group=self.device_group)
    sizes = sizes or [len(total) // self.world_size] * self.world_size
    first = sum(sizes[: self.rank_in_group])
    return total[first : first + sizes[self.rank_in_group]].to(input_.dtype)


def install():
    CpuCommunicator.all_gatherv = all_gatherv
    CpuCommunicator.reduce_scatterv = reduce_scatterv
