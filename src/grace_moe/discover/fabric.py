"""The network as a file declares it: which switches, or accelerator domains, each host is under."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grace_moe.discover.declared import Declaration, grouped
from grace_moe.discover.rank_facts import RankFacts
from grace_moe.errors import TopologyError

MOST_HOSTS = 65_536
"""Of a file."""
MOST_LAYERS = 16
"""Of switches above a host."""


@dataclass(frozen=True, kw_only=True)
class Fabric:
    """Hosts and what they are under."""

    source: str
    layers: Mapping[str, tuple[str, ...]]
    """By host: names of switches, the nearest first."""
    domains: Mapping[str, str]
    """By host: its accelerator domain (NVLink), or its block. Hosts without one are not there."""

    def declarations(self, ranks: Sequence[RankFacts]) -> list[Declaration]:
        """How it groups the ranks: a declaration a layer, and one of the domains, as far as they say anything.

        Raises:
            TopologyError: a rank's host is not in the file.
        """
        hosts = [self._named(rank.host) for rank in ranks]
        under = [self.layers.get(host, ()) for host in hosts]
        found = []
        if all(host in self.domains for host in hosts):
            found.append(("accelerator domains", grouped([self.domains[host] for host in hosts])))
        found += [(f"switches, layer {n + 1}", grouped([switches[n] for switches in under])) for n in range(min(map(len, under)))]
        seen: set[object] = set()
        kept = []
        for what, groups in found:
            if len(groups) > 1 and groups not in seen:
                seen.add(groups)
                kept.append(Declaration(source=f"{self.source} ({what})", groups=groups, nodes=False))
        return kept

    def _named(self, host: str) -> str:
        """The host as the file has it: whole, or without its domain."""
        for name in (host, host.split(".")[0]):
            if name in self.layers or name in self.domains:
                return name
        raise TopologyError(self.source, "hosts", f"{host} is not there", "give the file of this cluster, with the hosts' own names")
