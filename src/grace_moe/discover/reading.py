"""Files that declare a topology: which kind one is, by what is in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from grace_moe.discover.declared import Declaration, grouped
from grace_moe.discover.fabric import Fabric
from grace_moe.discover.link_kinds import LinkKinds, read_nvidia_smi
from grace_moe.discover.rank_facts import RankFacts
from grace_moe.discover.slurm_topology import read_slurm
from grace_moe.discover.topograph import KEY, read_topograph
from grace_moe.errors import TopologyError
from grace_moe.files import parse_json, read_bytes
from grace_moe.topology import Topology

MOST_BYTES = 16 * 2**20
Declared = Fabric | LinkKinds | Topology


def read_declared(text: str) -> Declared:
    """A shorthand (`2x4`), or a file: a topology of ours or SGLang's costs of ranks, Topograph's JSON, Slurm's topology.conf, or what
    `nvidia-smi topo -m` printed.

    Raises:
        TopologyError: none of them, or one that is damaged.
    """
    if re.fullmatch(r"\d+x\d+(:[\w-]+)?", text):
        return Topology.parse(text)
    data = read_bytes(Path(text), TopologyError, MOST_BYTES)
    if data.lstrip()[:1] == b"{":
        value = parse_json(data, TopologyError, text)
        return read_topograph(value, text) if KEY in value else Topology.from_dict(value, text)
    words = data.decode(errors="replace")
    if re.search(r"^\s*(switch|block)name=", words, re.IGNORECASE | re.MULTILINE):
        return read_slurm(words, text)
    if "GPU0" in words:
        return read_nvidia_smi(words, text)
    mend = "give a topology, Topograph's JSON, Slurm's topology.conf, or what nvidia-smi topo -m printed"
    raise TopologyError(text, "file", "declares no topology that is known", mend)


def declarations_of(declared: Declared, ranks: Sequence[RankFacts]) -> list[Declaration]:
    """How what was read groups the ranks.

    Raises:
        TopologyError: it is of other ranks.
    """
    if not isinstance(declared, Topology):
        return declared.declarations(ranks)
    if declared.num_devices != len(ranks):
        raise TopologyError(declared.source, "nodes", f"{declared.num_devices} devices, but {len(ranks)} ranks run", "start as many ranks")
    found = [Declaration(source=declared.source, groups=grouped(declared.node_of_device.tolist()), nodes=True)]
    for tier in declared.tiers:
        group = {device: number for number, members in enumerate(tier.groups) for device in members}
        keys = [group.get(rank, -1 - rank) for rank in range(len(ranks))]  # a device in no group is one by itself
        found.append(Declaration(source=f"{declared.source} ({tier.name})", groups=grouped(keys), nodes=False))
    return found
