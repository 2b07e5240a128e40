"""The JSON of Topograph's `graph` engine, versions 0.5 to 1.1 (docs.nvidia.com/topograph/engines/graph): switches above each instance."""

from __future__ import annotations

from typing import Any

from grace_moe.discover.fabric import MOST_HOSTS, MOST_LAYERS, Fabric
from grace_moe.errors import TopologyError

KEY = "instances"
_MEND = "give what Topograph's graph engine answered"
_DOMAINS = (("labels", "accelerator.topograph.run/domain"), ("attributes", "nvlink"))
"""Where an instance's accelerator domain is: from 1.0 on, and before."""


def read_topograph(value: dict[str, Any], source: str) -> Fabric:
    """The instances of Topograph's answer; their ids are the names of hosts.

    Raises:
        TopologyError: not one, too large, or an instance is there twice.
    """
    rows = value[KEY]
    if not isinstance(rows, list) or not rows or len(rows) > MOST_HOSTS:
        raise TopologyError(source, KEY, f"not a list of 1 to {MOST_HOSTS} instances", _MEND)
    layers: dict[str, tuple[str, ...]] = {}
    domains: dict[str, str] = {}
    for index, row in enumerate(rows):
        where = f"{KEY}[{index}]"
        if not isinstance(row, dict) or not isinstance(row.get("id"), str):
            raise TopologyError(source, f"{where}.id", "missing, or not text", _MEND)
        switches = row.get("network_layers") or []
        if not isinstance(switches, list) or len(switches) > MOST_LAYERS or not all(isinstance(name, str) for name in switches):
            raise TopologyError(source, f"{where}.network_layers", f"not a list of at most {MOST_LAYERS} names", _MEND)
        if row["id"] in layers:
            raise TopologyError(source, f"{where}.id", f"{row['id']!r} is there twice", _MEND)
        layers[row["id"]] = tuple(switches)
        for group, name in _DOMAINS:
            domain = row[group].get(name) if isinstance(row.get(group), dict) else None
            if isinstance(domain, str):
                domains.setdefault(row["id"], domain)
    return Fabric(source=source, layers=layers, domains=domains)
