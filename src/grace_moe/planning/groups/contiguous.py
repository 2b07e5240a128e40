"""Contiguous blocks of experts, of sizes as equal as can be."""

from grace_moe.planning.groups.partition import Groups


def even_sizes(num_experts: int, num_devices: int) -> list[int]:
    """Sizes that differ by at most one; the first devices have the larger ones."""
    share, extra = divmod(num_experts, num_devices)
    return [share + (device < extra) for device in range(num_devices)]


def contiguous_groups(num_experts: int, num_devices: int) -> Groups:
    """Experts in order, in blocks whose sizes differ by at most one."""
    groups, start = [], 0
    for size in even_sizes(num_experts, num_devices):
        groups.append(tuple(range(start, start + size)))
        start += size
    return tuple(groups)
