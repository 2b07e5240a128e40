"""Joining the other ranks, and naming those that are lost."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed import FileStore, PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from grace_moe.errors import GraceError, MismatchError, RankError
from grace_moe.runtime.dispatch.collectives import is_communication_error
from grace_moe.runtime.dispatch.rank_groups import rank_device
from grace_moe.runtime.job import TIMEOUT_SECONDS
from grace_moe.runtime.job.roll_call import RollCall

_JOIN_POLL_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Membership:
    """This rank among the others."""

    rank: int
    world_size: int
    store: Store


@contextmanager
def joined(*, rendezvous_file: str | None = None, timeout: timedelta = timedelta(seconds=TIMEOUT_SECONDS)) -> Iterator[Membership]:
    """Join the ranks that torchrun, or our own launcher, started; leave at the end.

    Args:
        rendezvous_file: a file that all local ranks share; None = torchrun's environment variables.

    Raises:
        RankError: not started as a rank, a rank never joined, or one was lost inside the block; it is named.
    """
    try:
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError) as error:
        raise RankError("RANK and WORLD_SIZE are not set: start the ranks with torchrun, or give --local NxG") from error
    store = _store(rendezvous_file, world_size, timeout)
    accelerators = _wait_for_all(store, rank, world_size, timeout)
    backend = backend_of(accelerators)
    if torch.cuda.is_available():
        torch.cuda.set_device(rank_device())
    member = Membership(rank=rank, world_size=world_size, store=store)
    roll_call = RollCall(store, rank, world_size)
    with roll_call.answering(), naming_lost_ranks(member, roll_call):
        dist.init_process_group(backend, store=PrefixStore("group", store), rank=rank, world_size=world_size, timeout=timeout)
        yield member
        dist.barrier()
    dist.destroy_process_group()


def backend_of(accelerators: Sequence[str]) -> str:
    """What ranks talk by: NCCL where each has an accelerator of its own, else gloo, through host memory.

    Args:
        accelerators: of each rank, what tells its accelerator from all others; empty = it has none.
    """
    return "nccl" if all(accelerators) and len(set(accelerators)) == len(accelerators) else "gloo"


def agree(member: Membership, facts: dict[str, str]) -> None:
    """Compare what each rank was told; ranks of several machines read files of their own. Collective.

    Raises:
        MismatchError: on every rank, naming the first fact that differs and the ranks that differ from rank 0.
    """
    everyone: list[Any] = [None] * member.world_size
    dist.all_gather_object(everyone, facts)
    for name, value in everyone[0].items():
        others = [rank for rank, told in enumerate(everyone) if told.get(name) != value]
        if others:
            named = ", ".join(f"rank {rank}: {everyone[rank].get(name)}" for rank in others[:4])
            raise MismatchError(f"{name}: rank 0 has {value}, but {named}; give all ranks the same")


def first_to_say(member: Membership, error: Exception) -> bool:
    """Whether this rank is to print the error: what several have alike is said once, and of ranks that lost another one speaks, if that
    other did not say why it ended."""
    explains = not isinstance(error, RankError)
    with suppress(RuntimeError):  # the store is gone, and nobody else may be there to say it
        if explains:
            member.store.set("explained", "1")
        elif member.store.check(["explained"]):
            return False
        what = hashlib.sha256(repr(error).encode()).hexdigest() if explains else "lost"
        return int(member.store.add(f"said/{what}", 1)) == 1
    return True


def leave(code: int) -> NoReturn:
    """End this rank's process at once, with everything printed.

    torch's own threads outlive their process group now and then, and abort the interpreter's orderly end ("terminate
    called without an active exception"): a rank that did its work would be reported as killed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def naming_lost_ranks(member: Membership, roll_call: RollCall) -> Iterator[None]:
    """Turn a broken collective into an error that names the ranks that are gone."""
    try:
        yield
    except GraceError:
        raise
    except RuntimeError as error:  # torch's collectives raise RuntimeError and subclasses of it
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not is_communication_error(error):
            raise
        raise RankError(
            f"rank {member.rank}: {_who_is_lost(roll_call)} ({first_line[:160]}); see its own error, then start all ranks again"
        ) from error


def _who_is_lost(roll_call: RollCall) -> str:
    try:
        lost = roll_call.lost()
    except RuntimeError:
        # Without torchrun's agents the store is rank 0's own.
        return "lost the rendezvous" if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else "lost rank 0"
    return f"lost rank {', '.join(map(str, lost))}" if lost else "a collective failed, though every rank answers"


def _store(rendezvous_file: str | None, world_size: int, timeout: timedelta) -> Store:
    if rendezvous_file is not None:
        return FileStore(rendezvous_file, world_size)
    try:
        store: Store = next(rendezvous("env://", timeout=timeout))[0]
    except (RuntimeError, ValueError) as error:
        raise RankError(f"can't reach the rendezvous ({str(error).splitlines()[0]}); check MASTER_ADDR and MASTER_PORT") from error
    return store


def _wait_for_all(store: Store, rank: int, world_size: int, timeout: timedelta) -> list[str]:
    """Every rank's accelerator, once all have come (`backend_of`)."""
    store.set(f"joined/{rank}", _own_accelerator())
    deadline = time.monotonic() + timeout.total_seconds()
    missing = list(range(world_size))
    while missing:
        missing = [r for r in missing if not store.check([f"joined/{r}"])]
        if missing and time.monotonic() > deadline:
            named = ", ".join(map(str, missing))
            raise RankError(f"rank {rank}: rank {named} never joined within {timeout.total_seconds():.0f} s; is it running?")
        time.sleep(_JOIN_POLL_SECONDS if missing else 0)
    return [store.get(f"joined/{r}").decode() for r in range(world_size)]


def _own_accelerator() -> str:
    device = rank_device()
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""
