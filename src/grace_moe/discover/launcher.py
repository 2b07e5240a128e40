"""What the launcher and the machine declare: torchrun, Slurm and Open MPI by their variables, sockets and NUMA nodes by the kernel."""

from __future__ import annotations

import re
from collections.abc import Sequence

from grace_moe.discover.declared import Declaration, grouped
from grace_moe.discover.rank_facts import RankFacts


def declared_by_launcher(ranks: Sequence[RankFacts]) -> list[Declaration]:
    """Of every launcher whose variables all ranks have.

    torchrun numbers its nodes (`GROUP_RANK`), and so does Slurm. Without such numbers a node begins where the local ranks begin again.
    """
    found = [
        ("GROUP_RANK (torchrun)", _by_number(ranks, "GROUP_RANK")),
        ("SLURM_NODEID (Slurm)", _by_number(ranks, "SLURM_NODEID")),
        ("OMPI_COMM_WORLD_LOCAL_RANK (Open MPI)", _by_local_rank(ranks, "OMPI_COMM_WORLD_LOCAL_RANK")),
    ]
    if found[0][1] is None:
        found.insert(0, ("LOCAL_RANK (torchrun)", _by_local_rank(ranks, "LOCAL_RANK")))
    return [Declaration(source=source, groups=grouped(nodes), nodes=True) for source, nodes in found if nodes is not None]


def wrong_sizes(ranks: Sequence[RankFacts]) -> list[str]:
    """Sentences on launchers that count other ranks on a node than there are."""
    notes = []
    for size, node_of in (
        ("LOCAL_WORLD_SIZE", _by_number(ranks, "GROUP_RANK") or _by_local_rank(ranks, "LOCAL_RANK")),
        ("OMPI_COMM_WORLD_LOCAL_SIZE", _by_local_rank(ranks, "OMPI_COMM_WORLD_LOCAL_RANK")),
    ):
        declared = _by_number(ranks, size)
        if node_of is None or declared is None:
            continue
        wrong = [group for group in grouped(node_of) if {declared[rank] for rank in group} != {len(group)}]
        notes += [f"{size} says {declared[group[0]]} ranks on the node of rank {group[0]}, which has {len(group)}" for group in wrong[:4]]
    return notes


def declared_by_machine(ranks: Sequence[RankFacts]) -> list[Declaration]:
    """Sockets and NUMA nodes, where every rank is on one and a machine has several."""
    found = []
    for source, of in (("sockets (/sys)", [rank.package for rank in ranks]), ("NUMA nodes (/sys)", [rank.numa for rank in ranks])):
        groups = grouped([(rank.machine, number) for rank, number in zip(ranks, of, strict=True)])
        if None not in of and len(groups) > len({rank.machine for rank in ranks}):
            found.append(Declaration(source=source, groups=groups, nodes=False))
    return found


def _by_number(ranks: Sequence[RankFacts], name: str) -> list[int] | None:
    texts = [rank.variables.get(name, "") for rank in ranks]
    return [int(text) for text in texts] if all(re.fullmatch(r"\d{1,9}", text) for text in texts) else None


def _by_local_rank(ranks: Sequence[RankFacts], name: str) -> list[int] | None:
    local = _by_number(ranks, name)
    if local is None:
        return None
    nodes, node = [], -1
    for rank, number in enumerate(local):
        node += rank == 0 or number <= local[rank - 1]
        nodes.append(node)
    return nodes
