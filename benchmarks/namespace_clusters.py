"""Random clusters of network namespaces, whose tiers and bandwidths are known: veth pairs, bridges, `tc tbf`; all removed afterwards.

Every rank is in a namespace of its own. Its link leads to its node's bridge, that one's to its rack's, and that one's to the
spine: the slowest link on the way is the pair's. A bad link is a direct one between two ranks, slower than what it replaces.
"""

from __future__ import annotations

import ctypes
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from made_clusters import Cluster, Groups
from slow_link import KEEP_UP, before_others, command, shape

_CLONE_NEWNET = 0x40000000
_ADDRESS = "10.77.1.{}"


@contextmanager
def built(cluster: Cluster) -> Iterator[list[str]]:
    """The namespaces of the ranks, while the block runs.

    Raises:
        OSError, subprocess.CalledProcessError: namespaces are refused.
    """
    prefix = f"grace{os.getpid()}"
    names = [f"{prefix}r{rank}" for rank in range(cluster.ranks)]
    switches = f"{prefix}s"
    try:
        for name in (*names, switches):
            command("ip", "netns", "add", name)
        _switches(cluster, switches)
        for rank, name in enumerate(names):
            node = _of(cluster.partitions[0], rank)
            command("ip", "link", "add", "eth", "netns", name, "type", "veth", "peer", "name", f"rank{rank}", "netns", switches)
            command("ip", "-n", switches, "link", "set", f"rank{rank}", "master", f"sw0-{node}", "up")
            shape(switches, f"rank{rank}", _bits(cluster.rates[0]))
            _address(name, "eth", f"{_ADDRESS.format(rank + 1)}/24", cluster.rates[0])
            command("ip", "-n", name, "link", "set", "lo", "up")
            for setting in KEEP_UP:
                command("ip", "netns", "exec", name, "sysctl", "-w", setting)
        if cluster.bad is not None:
            _bad_link(cluster.bad, names)
        yield names
    finally:
        for name in (*names, switches):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _switches(cluster: Cluster, switches: str) -> None:
    """A bridge a group of each tier, each with a link to its own group's of the next tier."""
    for tier, groups in enumerate(cluster.partitions):
        for number in range(len(groups)):
            command("ip", "-n", switches, "link", "add", f"sw{tier}-{number}", "type", "bridge")
            command("ip", "-n", switches, "link", "set", f"sw{tier}-{number}", "up")
    for tier, groups in enumerate(cluster.partitions[:-1]):
        for number, group in enumerate(groups):
            above = _of(cluster.partitions[tier + 1], group[0])
            up, down = f"up{tier}-{number}", f"dn{tier}-{number}"
            command("ip", "-n", switches, "link", "add", up, "type", "veth", "peer", "name", down)
            for device, switch in ((up, f"sw{tier}-{number}"), (down, f"sw{tier + 1}-{above}")):
                command("ip", "-n", switches, "link", "set", device, "master", switch, "up")
                shape(switches, device, _bits(cluster.rates[tier + 1]))


def _bad_link(bad: tuple[int, int, float], names: list[str]) -> None:
    i, j, rate = bad
    command("ip", "link", "add", "bad", "netns", names[i], "type", "veth", "peer", "name", "bad", "netns", names[j])
    for one in (i, j):
        command("ip", "-n", names[one], "link", "set", "bad", "up")
        shape(names[one], "bad", _bits(rate))
    for one, other in ((i, j), (j, i)):
        there, here = _ADDRESS.format(other + 1), _ADDRESS.format(one + 1)
        command("ip", "-n", names[one], "route", "add", f"{there}/32", "dev", "bad", "src", here)


def _address(namespace: str, device: str, address: str, rate: float) -> None:
    command("ip", "-n", namespace, "addr", "add", address, "dev", device)
    command("ip", "-n", namespace, "link", "set", device, "up")
    shape(namespace, device, _bits(rate))


def _of(groups: Groups, rank: int) -> int:
    return next(number for number, group in enumerate(groups) if rank in group)


def _bits(rate: float) -> str:
    return f"{rate * 8:.0f}bit"


def enter(namespace: str) -> None:
    """Move this process into a namespace. It has one thread yet."""
    with open(f"/var/run/netns/{namespace}", "rb") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns", namespace)


def disturb(ranks: int, seed: int) -> None:
    """Jitter, for ever: bursts of datagrams to other ranks, of up to 22 KB, 20 in a second. Nobody reads them."""
    chance = random.Random(seed)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        while True:
            time.sleep(chance.expovariate(20))
            there = _ADDRESS.format(chance.randint(1, ranks))
            for _ in range(chance.randint(1, 16)):
                out.sendto(bytes(1400), (there, 9))


def run_ranks(names: list[str], folder: Path, jitter: int | None = None) -> list[int]:
    """Fork a rank into each namespace, which discovers; rank 0 leaves `found.json` in the folder. Their exit codes.

    This process must have imported what ranks need (`grace_moe.runtime.job.probe`), and have one thread.

    Args:
        jitter: a seed for `disturb`, from every namespace; None = the links are quiet.
    """
    disturbers = (
        [] if jitter is None else [_forked(name, lambda rank=rank: disturb(len(names), jitter + rank)) for rank, name in enumerate(names)]
    )
    ranks = []
    try:
        for rank, name in enumerate(names):
            ranks.append(_forked(name, lambda rank=rank: _discover(rank, len(names), folder)))
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks]
    finally:
        for pid in disturbers:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


def _forked(namespace: str, work) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        enter(namespace)
        before_others()
        work()
    except BaseException as error:
        sys.stderr.write(f"{namespace}: {error!r}\n")
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _discover(rank: int, ranks: int, folder: Path) -> None:
    from grace_moe.runtime.job.probe import discover_together
    from grace_moe.runtime.job.ranks import joined

    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK="0", GLOO_SOCKET_IFNAME="eth")
    with joined(rendezvous_file=str(folder / "rendezvous")) as member:
        began = time.perf_counter()
        _, topology = discover_together(member, [])
        if rank == 0:
            topology.save(folder / "found.json")
            (folder / "seconds").write_text(str(time.perf_counter() - began))
