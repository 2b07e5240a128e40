"""What a rank knows of itself before anything is measured: its launcher's variables, its machine, its sockets, its accelerator."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

VARIABLES = (
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "SLURM_NODEID",
    "SLURM_LOCALID",
    "SLURMD_NODENAME",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
)
_MOST_CPUS = 2**16


@dataclass(frozen=True, kw_only=True)
class RankFacts:
    """One rank's. Ranks tell each other."""

    host: str
    """Name of the machine, as Slurm has it or else as it has itself."""
    machine: str
    """What no other machine has: ranks of one share its cores."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Those of `VARIABLES` that the launcher set."""
    numa: int | None = None
    """NUMA node of its accelerator, or of its cores where they are of one."""
    package: int | None = None
    """Socket of its cores, where they are of one."""
    accelerator: str | None = None
    memory_bytes: int | None = None
    """Of the accelerator."""


def facts_of_this_rank(
    *, pci_address: str | None = None, accelerator: str | None = None, memory_bytes: int | None = None, system: Path = Path("/sys")
) -> RankFacts:
    """What this process can tell.

    Args:
        pci_address: of its accelerator, as `0000:1b:00.0`; None = it has none.
        system: where the kernel tells of the machine.
    """
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    numa = _one(_numa_nodes(cores, system))
    if pci_address is not None:
        numa = _number(system / "bus/pci/devices" / pci_address.lower() / "numa_node")
    packages = {_number(system / f"devices/system/cpu/cpu{core}/topology/physical_package_id") for core in cores}
    return RankFacts(
        host=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        machine=_text(Path("/proc/sys/kernel/random/boot_id")) or socket.gethostname(),
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
        numa=numa,
        package=_one(packages),
        accelerator=accelerator,
        memory_bytes=memory_bytes,
    )


def cores_of(text: str) -> set[int]:
    """The numbers in a list of the kernel.

    >>> sorted(cores_of("0-2,8"))
    [0, 1, 2, 8]
    """
    found: set[int] = set()
    for first, last in re.findall(r"(\d{1,6})(?:-(\d{1,6}))?", text):
        found |= set(range(int(first), min(int(last or first), _MOST_CPUS) + 1))
    return found


def _numa_nodes(cores: Iterable[int], system: Path) -> set[int | None]:
    folders = sorted((system / "devices/system/node").glob("node[0-9]*"))
    return {int(folder.name[4:]) for folder in folders if cores_of(_text(folder / "cpulist")) & set(cores)}


def _one(found: set[int | None]) -> int | None:
    return next(iter(found)) if len(found) == 1 else None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if re.fullmatch(r"\d{1,9}", text) else None  # -1 = not known


def _text(path: Path) -> str:
    """A small file of the kernel; empty where there is none. Its size is told as 0 or a page, so that it is read to its end."""
    try:
        with path.open("rb") as file:
            return file.read(2**16).decode(errors="replace").strip()
    except OSError:
        return ""
