"""How weights go from rank to rank: a process group of their own, so that they never stand between dispatch's collectives."""

from __future__ import annotations

import time
from datetime import timedelta

import torch
import torch.distributed as dist

from grace_moe.errors import RankError
from grace_moe.runtime.dispatch.collectives import is_communication_error


class Link:
    """Sends and receives bytes of the CPU, over gloo. After a failure it is of no use until all ranks renew it."""

    def __init__(self, timeout: timedelta) -> None:
        self._timeout = timeout
        self._group = _new_group(timeout)

    def send(self, part: torch.Tensor, to: int) -> dist.Work:
        """Begin to send."""
        return _begun(dist.isend(part, to, group=self._group))

    def receive(self, part: torch.Tensor, source: int) -> dist.Work:
        """Begin to receive."""
        return _begun(dist.irecv(part, source, group=self._group))

    def renew(self) -> None:
        """Another group in place of this one. Collective; nothing may be under way."""
        old, self._group = self._group, _new_group(self._timeout)
        dist.destroy_process_group(old)


def wait_until(work: dist.Work, deadline: float) -> None:
    """Wait for a transfer, until `time.monotonic()` reads the deadline at most.

    Raises:
        RankError: it did not end in time.
        RuntimeError: the connection broke.
    """
    seconds = max(0.001, deadline - time.monotonic())
    try:
        work.wait(timedelta(seconds=seconds))
    except RuntimeError as error:
        if is_communication_error(error) and time.monotonic() >= deadline:
            raise RankError("nothing came in time") from error
        raise


def _new_group(timeout: timedelta) -> dist.ProcessGroup:
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=timeout)
    return group


def _begun(work: dist.Work | None) -> dist.Work:
    assert work is not None, "every rank is of the group"
    return work
