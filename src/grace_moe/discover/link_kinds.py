"""How the accelerators of one host are linked: the table that `nvidia-smi topo -m` prints, or the same asked of NVML."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse.csgraph import connected_components

from grace_moe.discover.declared import Declaration, grouped
from grace_moe.discover.rank_facts import RankFacts
from grace_moe.errors import TopologyError

_MEND = "give what nvidia-smi topo -m printed, as it is"
_KINDS = ("X", "PIX", "PXB", "PHB", "NODE", "SYS")
_MOST = 64
"""Accelerators of a host."""
_STYLE = re.compile(r"\x1b\[[\d;]*m")
_LEVELS = {10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
"""NVML's nvmlGpuTopologyLevel_t in the words of nvidia-smi."""


@dataclass(frozen=True, kw_only=True)
class LinkKinds:
    """`kinds[i][j]`: how accelerator i reaches j, in nvidia-smi's words: NV18, PIX, PXB, PHB, NODE, SYS; X is itself."""

    source: str
    kinds: tuple[tuple[str, ...], ...]

    def declarations(self, ranks: Sequence[RankFacts]) -> list[Declaration]:
        """How hosts of this kind group the ranks, a rank being the accelerator of its local rank: by NVLink, and by socket.

        Raises:
            TopologyError: a rank has no local rank, or one that is not in the table.
        """
        keys = []
        for rank in ranks:
            local = next((rank.variables[n] for n in rank.variables if n in ("LOCAL_RANK", "SLURM_LOCALID")), "")
            if not re.fullmatch(r"\d{1,4}", local) or int(local) >= len(self.kinds):
                raise TopologyError(
                    self.source, "GPU", f"no accelerator of local rank {local or '(unknown)'}", "give the table of these hosts"
                )
            keys.append((rank.machine, int(local)))
        found = []
        kinds = np.array(self.kinds)
        for what, near in (("NVLink", np.char.startswith(kinds, "NV")), ("not across sockets", kinds != "SYS")):
            joined = connected_components(near, directed=False)[1]
            groups = grouped([(machine, int(joined[local])) for machine, local in keys])
            if any(len(group) > 1 for group in groups):
                found.append(Declaration(source=f"{self.source} ({what})", groups=groups, nodes=False))
        return found


def read_nvidia_smi(text: str, source: str) -> LinkKinds:
    """The table of `nvidia-smi topo -m`; network adapters and affinities in it are passed over.

    Raises:
        TopologyError: not such a table, or damaged.
    """
    lines = [_STYLE.sub("", line).split() for line in text.splitlines()]
    header = next((words for words in lines if words and words[0] == "GPU0" and "X" not in words), None)
    columns = [word for word in header or () if re.fullmatch(r"GPU\d{1,4}", word)]
    count = len(columns)
    if not 1 <= count <= _MOST or columns != [f"GPU{i}" for i in range(count)] or (header or [])[:count] != columns:
        raise TopologyError(source, "header", f"no columns GPU0, GPU1, ... (at most {_MOST})", _MEND)
    rows = {words[0]: tuple(words[1 : count + 1]) for words in lines if words and words is not header and words[0] in columns}
    for name in columns:
        row = rows.get(name, ())
        if len(row) != count or not all(word in _KINDS or re.fullmatch(r"NV\d{1,3}", word) for word in row):
            raise TopologyError(source, name, "no row of NV#, PIX, PXB, PHB, NODE, SYS and X", _MEND)
    kinds = tuple(rows[name] for name in columns)
    if any((kinds[i][j] == "X") != (i == j) or kinds[i][j] != kinds[j][i] for i in range(count) for j in range(count)):
        raise TopologyError(source, "table", "not the same both ways, or X is not on the diagonal", _MEND)
    return LinkKinds(source=source, kinds=kinds)


def nvml_link_kinds() -> LinkKinds | None:
    """The same, asked of NVML (package nvidia-ml-py); None where there is none, or it does not answer."""
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # no package, no driver, no permission: there is nothing to ask
        return None
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        rows = tuple(tuple("X" if a is b else _kind(nvml, a, b) for b in handles) for a in handles)
        return LinkKinds(source="NVML", kinds=rows) if rows else None
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()


def _kind(nvml: Any, one: Any, other: Any) -> str:
    if nvml.nvmlDeviceGetP2PStatus(one, other, nvml.NVML_P2P_CAPS_INDEX_NVLINK) == nvml.NVML_P2P_STATUS_OK:
        return "NV1"
    return _LEVELS.get(int(nvml.nvmlDeviceGetTopologyCommonAncestor(one, other)), "SYS")
